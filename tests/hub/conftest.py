"""What a Kuhn poker run leaves behind: its metrics and some of its games."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spiral_trl.records import Ending, Episode, Reply, Step, Turn


GAME = "kuhn_poker(observation=compact)"
# Probability of the second action in the equilibrium family, alpha in [0, 1/3]: Kuhn (1950).
BANDS = {
    ("J", ""): (0, 1 / 3), ("Q", ""): (0, 0), ("K", ""): (0, 1),
    ("J", "check bet"): (0, 0), ("Q", "check bet"): (1 / 3, 2 / 3), ("K", "check bet"): (1, 1),
    ("J", "bet"): (0, 0), ("Q", "bet"): (1 / 3, 1 / 3), ("K", "bet"): (1, 1),
    ("J", "check"): (1 / 3, 1 / 3), ("Q", "check"): (0, 0), ("K", "check"): (1, 1),
}  # fmt: skip
FINAL = (0.214, 0.006, 0.631, 0.001, 0.552, 0.999, 0.002, 0.338, 0.999, 0.329, 0.011, 0.998)
PLAIN = (0.02, 0.31, 0.97, 0.001, 0.88, 0.999, 0.004, 0.71, 0.999, 0.05, 0.24, 0.999)


def make_metrics() -> dict[str, Any]:
    strategy = []
    for i, ((card, history), (low, high)) in enumerate(BANDS.items()):
        start = 0.49 + 0.1 * math.sin(i)
        strategy.append(
            {
                "infoset": f"{i // 6}|{card}|{history}",
                "player": i // 6,
                "card": card,
                "history": history,
                "actions": ["fold", "call"] if history.endswith("bet") else ["check", "bet"],
                "start": [0.98 - start, start],
                "final": [0.9999 - FINAL[i], FINAL[i]],
                "plain": [0.999 - PLAIN[i], PLAIN[i]],
                "equilibrium": [[1 - high, 1 - low], [low, high]],
            }
        )
    curves: dict[str, list[dict[str, Any]]] = {"self_play": [], "plain": []}
    for i in range(41):
        step, fade = round(87.5 * i), math.exp(-i / 7)
        wobble = 1 + 0.35 * math.sin(1.7 * i)
        for run in curves:
            plain = run == "plain"
            curves[run].append(
                {
                    "step": step,
                    "games": 2048 * step,
                    "exploitability": 0.3 + 0.6 * fade + 0.12 * math.sin(0.9 * i)
                    if plain
                    else (0.9 * fade + 0.009) * wobble,
                    "illegal_move_rate": (0.02 * fade + (1e-3 if plain else 7e-5)) * wobble,
                    "return": {"player 0": -0.056 + 0.05 * fade * wobble, "player 1": 0.056 - 0.05 * fade * wobble},
                    "reply_length": 3.0,
                    "entropy": 0.2 + 0.5 * fade,
                }
            )
    results = []
    for i, (opponent, role, rate, mean) in enumerate(
        (("random", "player 0", 0.61, 0.312), ("random", "player 1", 0.66, 0.438),
         ("cfr", "player 0", 0.41, -0.061), ("cfr", "player 1", 0.52, 0.049))
    ):  # fmt: skip
        results.append(
            {
                "opponent": opponent,
                "seat": i % 2,
                "role": role,
                "games": 1000,
                "win_rate": [rate, rate - 0.03, rate + 0.03],
                "draw_rate": 0.0,
                "mean_return": [mean, mean - 0.081, mean + 0.081],
            }
        )
    return {
        "schema": 1,
        "game": GAME,
        "finished": True,
        "model": {
            "name": "embedded Qwen3, 20k parameters",
            "architecture": "Qwen3ForCausalLM",
            "parameters": 20512,
            "embedded": True,
            "base_model": None,
        },
        "recipe": "recipes/kuhn_tiny.yaml",
        "command": "accelerate launch recipes/kuhn.py --config recipes/kuhn_tiny.yaml",
        "exploitability": {
            "start": 0.8931, "final": 0.01234, "plain": 0.3172, "final_given_legal": 0.0121,
            "plain_given_legal": 0.3145, "unexplored_mass": 2e-6, "method": "exact", "unit": "chips",
            "samples": None, "floor": None,
        },
        "illegal_move_rate": {"start": 0.021, "final": 0.00007, "plain": 0.0012},
        "games": 7_168_000,
        "turns": 14_212_345,
        "tokens": 43_000_111,
        "seconds": {"total": 130.4, "generation": 31.2, "training": 80.0, "other": 19.2, "plain_total": 101.0},
        "seed": 0,
        "versions": {"spiral_trl": "0.1.0", "trl": "1.16.0", "transformers": "5.23.0", "torch": "2.13.0"},
        "machine": {"processor": "x86_64, 2 cores", "accelerator": None, "processes": 1},
        "results": results,
        "strategy": strategy,
        "equilibrium_alpha": 0.21,
        "curves": curves,
        "training": {"learning_rate": 0.004, "max_steps": 3500, "games_per_generation": 2048, "beta": 0.6},
    }  # fmt: skip


def kuhn_episode(
    seed: int,
    cards: str,
    moves: list[tuple[str, str | None, str | None]],
    returns: tuple[float, float],
    ending: Ending = Ending.TERMINAL,
) -> Episode:
    """A game of Kuhn poker. `moves` are (reply, action, error), players in turn."""
    steps, history = [], []
    for index, (text, action, error) in enumerate(moves):
        seat = index % 2
        legal = ("fold", "call") if history and history[-1] == "bet" else ("check", "bet")
        seen = f"player {seat} card {cards[seat]} history {' '.join(history) or 'none'}"
        turn = Turn(
            game=GAME,
            episode=0,
            seed=seed,
            index=index,
            player=seat,
            role=f"player {seat}",
            messages=(
                {"role": "system", "content": "You play Kuhn poker. Restate your card, then act: J [bet]."},
                {"role": "user", "content": seen},
            ),
            legal_actions=legal,
            infoset=f"{seat}|{cards[seat]}|{' '.join(history)}",
        )
        reply = Reply(text, action, error, finish_reason="stop" if error is None else "length", policy_version=3500)
        steps.append(Step(turn, reply))
        history.append(action or "?")
    return Episode(GAME, seed, ("self-play", "self-play"), ("player 0", "player 1"), tuple(steps), returns, ending)


def make_episodes() -> list[Episode]:
    games = [
        kuhn_episode(1, "JQ", [("J [check]", "check", None), ("Q [check]", "check", None)], (-1, 1)),
        kuhn_episode(2, "KQ", [("K [bet]", "bet", None), ("Q [call]", "call", None)], (2, -2)),
        kuhn_episode(
            3,
            "QJ",
            [("Q [check]", "check", None), ("J [bet]", "bet", None), ("Q [call]", "call", None)],
            (2, -2),
        ),
        kuhn_episode(
            4,
            "JK",
            [("J [bet]", "bet", None), ("K K K [", None, "no action in square brackets; legal are fold, call")],
            (2, -2),
            Ending.ILLEGAL,
        ),
        kuhn_episode(5, "KJ", [("K [bet]", "bet", None)], (0, 0), Ending.TRUNCATED),
    ]
    for seed in range(6, 20):
        games.append(kuhn_episode(seed, "KJ", [("K [bet]", "bet", None), ("J [fold]", "fold", None)], (1, -1)))
    return games


@pytest.fixture
def metrics() -> dict[str, Any]:
    return make_metrics()


@pytest.fixture
def episodes() -> list[Episode]:
    return make_episodes()


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    return kuhn_episode


@pytest.fixture
def page(tmp_path: Path, metrics: dict[str, Any], episodes: list[Episode]) -> Path:
    from spiral_trl.hub.report import write_report

    write_report(metrics, episodes, tmp_path / "report.html")
    return tmp_path / "report.html"
