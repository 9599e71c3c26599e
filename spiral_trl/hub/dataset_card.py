"""The card of a set of expert decisions: the README of its repository on the Hub, with what the viewer reads."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..experts.collect import load_decisions, read_state
from .card import PAPER
from .formatting import duration, visible
from .redact import redact
from .rules import rules_of
from .templating import environment


if TYPE_CHECKING:
    from datasets import Dataset


# Games with more actions would fill the card with them
_MAX_ACTIONS = 12
_SOLVERS = ("cfr", "minimax", "mcts")


def write_dataset_card(folder: str | Path, command: str | None = None) -> Path:
    """Writes the card of a set that [`~spiral_trl.experts.collect.collect`] wrote, beside its files.

    Args:
        folder (`str` or `Path`): The set.
        command (`str`, *optional*): The command line that made it. What belongs to the machine is taken out.

    Returns:
        `Path`: The card.

    Raises:
        `ValueError`: If the folder holds no set, or one without rows.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    folder = Path(folder)
    state, dataset = read_state(folder), load_decisions(folder)
    settings = state["settings"]
    solvers = all(player.partition("(")[0] in _SOLVERS for player in state["players"].values())
    names = [redact(name) for name in state["players"].values()]
    data = DatasetCardData(
        tags=["trl", "spiral-trl", "self-play", "sft", *dict.fromkeys(_base(game) for game in settings["games"])],
        task_categories=["text-generation"],
        size_categories=_size(len(dataset)),
        pretty_name=f"Expert decisions: {', '.join(_base(game) for game in settings['games'])}",
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    games = [
        {
            "game": game,
            "player": redact(state["players"][game]),
            "rows": state["rows"].get(game, 0),
            "kept": state["kept_games"].get(game, 0),
            "played": state["played"].get(game, 0),
        }
        for game in state["players"]
    ]
    body = (
        environment()
        .get_template("dataset_card.md.jinja")
        .render(
            title=f"Decisions of {', '.join(dict.fromkeys(names))} in {', '.join(settings['games'])}",
            who=", ".join(dict.fromkeys(names)),
            count=len(dataset),
            wanted=settings["decisions"],
            finished=state["finished"],
            kept=_kept(settings, solvers),
            games=games,
            actions=_actions(dataset),
            rules=[(game, rules_of(game)) for game in settings["games"]],
            reasons=", reasons first" if settings["rationale"] else "",
            sample=visible(_sample(dataset)),
            facts=_facts(settings, state, names),
            command=redact(command) if command else None,
            caveats=_caveats(settings, solvers),
            paper=PAPER,
        )
    )
    path = folder / "README.md"
    DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(path)
    return path


def _base(game: str) -> str:
    return game.split("(")[0].split(":")[-1]


def _size(rows: int) -> str:
    """The Hub's size category."""
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < limit:
            return name
    return "1M<n<10M"


def _kept(settings: dict[str, Any], solvers: bool) -> str:
    keep = settings["keep"] or ("all" if solvers else "winners")
    who = "Only decisions in games that ended by their rules, and replies that named a legal action, are kept"
    whose = (
        "; of these only the winner's: those of the seat whose return exceeds every other's, so nothing of a draw."
        if keep == "winners"
        else ", whoever won."
    )
    against = f" The other seats are played by {redact(settings['opponent'])}." if settings["opponent"] else ""
    return f"{who}{whose}{against}"


def _actions(dataset: Dataset) -> list[dict[str, Any]]:
    counts = Counter(zip(dataset["game"], dataset["action"], strict=True))
    totals = Counter(dataset["game"])
    listed = {game for game in totals if sum(name == game for name, _ in counts) <= _MAX_ACTIONS}
    return [
        {"game": game, "action": action, "share": n / totals[game]}
        for (game, action), n in sorted(counts.items())
        if game in listed
    ]


def _sample(dataset: Dataset) -> str:
    row = dataset[0]
    told = [f"{message['role']}: {message['content']}" for message in (*row["prompt"], *row["completion"])]
    return "\n\n".join(told)


def _facts(settings: dict[str, Any], state: dict[str, Any], names: list[str]) -> list[tuple[str, str]]:
    packages = ("datasets", "open_spiel", "numpy")
    versions = [f"spiral_trl {state['version']}", *(f"{name} {version(name)}" for name in packages)]
    endings = ", ".join(f"{name} {count:,}" for name, count in sorted(state["endings"].items()) if count)
    facts = [
        ("Expert", ", ".join(dict.fromkeys(names))),
        ("Opponent", redact(settings["opponent"]) if settings["opponent"] else "itself"),
        ("Seed", str(settings["seed"])),
        ("Illegal replies", settings["illegal"]),
        ("Games ended", endings),
        ("Time", duration(state["seconds"])),
        ("Versions", ", ".join([*versions, f"python {platform.python_version()}"])),
    ]
    return [(name, value) for name, value in facts if value]


def _caveats(settings: dict[str, Any], solvers: bool) -> list[str]:
    caveats = []
    if settings["rationale"]:
        caveats.append(
            "Reasons are made from a solver's figures with a small number of phrasings. They say why the action is "
            "played, and are no record of anybody's thinking."
        )
    if solvers:
        caveats.append("Positions are those that the players reach; where they never go there are no rows.")
    else:
        caveats.append(
            "Completions were written by a model and were not checked beyond their last action: the reasons in them "
            "may be wrong."
        )
    if (settings["keep"] or ("all" if solvers else "winners")) == "winners":
        caveats.append(
            "Winning is partly luck: where something is hidden, decisions of winners are a biased sample of good play "
            "(in poker a fold never wins)."
        )
    return caveats
