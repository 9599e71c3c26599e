"""The figures a run reports: strategy beside the equilibrium, the nearest equilibrium, and the printed summary."""

import pytest

from spiral_trl.evaluation.exploitability import ExploitabilityBound
from spiral_trl.games.kuhn_equilibrium import equilibrium_ranges
from spiral_trl.training.evaluation import evaluate_player
from spiral_trl.training.measure import has_known_equilibrium, measure, nearest_alpha, results_by_seat, strategy_rows
from spiral_trl.training.summary import format_summary


GAME = "kuhn_poker(observation=compact)"


@pytest.fixture
def player(make_trainer):
    return make_trainer().player


def test_exploitability_and_strategy_of_one_measurement_belong_together(player):
    measured = measure(player, GAME, None, seed=0)
    assert measured.value == measured.exploitability.exploitability > 0
    assert measured.given_legal == measured.exploitability.given_legal.exploitability < measured.value
    assert len(measured.strategy) == 12
    for infoset, policy in measured.strategy.items():
        assert infoset.count("|") == 2 and len(policy) == 2
        assert 0.5 < sum(policy.values()) <= 1 + 1e-9  # the rest is illegal replies
    evaluated = evaluate_player(
        player, [GAME], games=2, opponents=[], samples=None, illegal="forfeit", max_turns=50, seed=0
    )
    assert evaluated["exploitability"] == pytest.approx(measured.value, abs=1e-6)


def test_a_game_without_a_table_has_a_lower_bound_and_no_strategy(make_trainer, small_qwen):
    player = make_trainer(model=str(small_qwen), games="kuhn_poker(rounds=3)", max_completion_length=2).player
    measured = measure(player, "kuhn_poker(rounds=3)", None, seed=0)
    if isinstance(measured.exploitability, ExploitabilityBound):
        assert measured.value == measured.exploitability.lower_bound.estimate and measured.given_legal is None
        assert measured.strategy == {}
        assert strategy_rows("kuhn_poker(rounds=3)", {"final": measured}) == []
    else:
        pytest.fail("three hands are tabulated now: choose a larger game")


@pytest.mark.parametrize(
    ("game", "known"),
    [
        (GAME, True),
        ("kuhn_poker", True),
        ("kuhn_poker(seat_bonus=1)", True),
        ("kuhn_poker(rounds=2)", False),
        ("kuhn_poker(rules=spiral)", False),
        ("kuhn_poker(cards=5)", False),
        ("kuhn_poker(payoff=sign)", False),
    ],
)
def test_where_the_equilibrium_family_holds(game, known):
    assert has_known_equilibrium(game) is known


def family(alpha):
    """The first seat's free probabilities in the member `alpha` of the family."""
    return {"0|J|": {"bet": alpha}, "0|K|": {"bet": 3 * alpha}, "0|Q|check bet": {"call": alpha + 1 / 3}}


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1 / 3])
def test_the_nearest_member_of_a_member_is_itself(alpha):
    assert nearest_alpha(family(alpha)) == pytest.approx(alpha)


def test_the_nearest_member_by_hand():
    # Least squares over (a, 3a, a + 1/3) for (0.1, 0.3, 1/3): a = (0.1 + 0.9 + 0) / 11
    strategy = family(0.1) | {"0|Q|check bet": {"call": 1 / 3}}
    assert nearest_alpha(strategy) == pytest.approx(1 / 11)
    assert nearest_alpha({key: dict.fromkeys(value, 1.0) for key, value in strategy.items()}) == pytest.approx(1 / 3)
    assert nearest_alpha({key: dict.fromkeys(value, 0.0) for key, value in strategy.items()}) == 0.0


def test_rows_of_the_strategy_stand_beside_the_equilibrium(player):
    measured = measure(player, GAME, None, seed=0)
    rows = strategy_rows(GAME, {"start": measured, "final": measured})
    assert len(rows) == 12
    ranges = equilibrium_ranges()
    for row in rows:
        assert row["start"] == row["final"] == [measured.strategy[row["infoset"]][action] for action in row["actions"]]
        assert row["infoset"] == f"{row['player']}|{row['card']}|{row['history']}"
        assert row["equilibrium"] == [list(ranges[row["infoset"]][action]) for action in row["actions"]]
    by_infoset = {row["infoset"]: row for row in rows}
    # Textbook: with the king, second to act, always bet after a check and always call a bet
    assert by_infoset["1|K|check"]["equilibrium"][by_infoset["1|K|check"]["actions"].index("bet")] == [1, 1]
    assert by_infoset["1|K|bet"]["equilibrium"][by_infoset["1|K|bet"]["actions"].index("call")] == [1, 1]
    third = by_infoset["1|J|check"]
    assert third["equilibrium"][third["actions"].index("bet")] == pytest.approx([1 / 3, 1 / 3])
    assert all(
        row["equilibrium"] is None
        for row in strategy_rows("kuhn_poker(payoff=sign,observation=compact)", {"final": measured})
    )


def test_results_by_seat(player):
    rows = results_by_seat(player, GAME, ["random", "cfr"], pairs=20, seed=1)
    assert [(row["opponent"], row["role"], row["games"]) for row in rows] == [
        (opponent, f"player {seat}", 20) for opponent in ("random", "cfr") for seat in (0, 1)
    ]
    for row in rows:
        for name, bounds in (("win_rate", (0, 1)), ("mean_return", (-2, 2))):
            estimate, low, high = row[name]
            assert bounds[0] <= estimate <= bounds[1] and low <= estimate <= high


def test_an_opponent_that_fails_is_left_out_of_the_results_and_no_url_is_told(player, caplog, small_qwen):
    unreachable = "endpoint(model=m,base_url=http://127.0.0.1:9/v1,api_key_env=none,max_retries=0)"
    rows = results_by_seat(player, GAME, ["random", unreachable, f"model(path={small_qwen},max_new_tokens=1)"], 2, 1)
    assert [row["opponent"] for row in rows[::2]] == ["random", "qwen(max_new_tokens=1)"]
    (warning,) = caplog.messages
    assert warning.startswith(f"results in {GAME} are without an opponent: endpoint(model=m) could not answer ")


METRICS = {
    "game": GAME,
    "model": {"name": "embedded Qwen3, 20,000 parameters", "embedded": True},
    "seed": 7,
    "games": 12345,
    "seconds": {"total": 61.4},
    "exploitability": {
        "start": 0.5,
        "final": 0.0123,
        "plain": 0.25,
        "method": "sampled",
        "unit": "chips",
        "samples": 128,
        "floor": 0.01,
    },
    "illegal_move_rate": {"start": 0.005, "final": 0.0001, "plain": 0.002},
    "strategy": [
        {
            "infoset": "0|J|",
            "player": 0,
            "card": "J",
            "history": "",
            "actions": ["check", "bet"],
            "start": [0.5, 0.5],
            "final": [0.8, 0.2],
            "plain": None,
            "equilibrium": [[2 / 3, 1], [0, 1 / 3]],
        },
        {
            "infoset": "1|K|bet",
            "player": 1,
            "card": "K",
            "history": "bet",
            "actions": ["fold", "call"],
            "start": [0.5, 0.5],
            "final": [0.0, 1.0],
            "plain": [0.1, 0.9],
            "equilibrium": [[0, 0], [1, 1]],
        },
    ],
    "equilibrium_alpha": 0.21,
    "results": [
        {
            "opponent": "cfr",
            "seat": 0,
            "role": "player 0",
            "games": 40,
            "win_rate": [0.5, 0.4, 0.6],
            "mean_return": [-0.05, -0.2, 0.1],
        }
    ],
}


def test_the_summary_says_what_was_measured_and_how():
    text = format_summary(METRICS)
    lines = text.splitlines()
    assert lines[0] == f"{GAME}, embedded Qwen3, 20,000 parameters, seed 7"
    assert "no pretrained model" in lines[1]
    assert "12,345 games, 61 s" in text
    find = lambda start: next(line for line in lines if line.startswith(start)).split("  ")  # noqa: E731
    cells = [cell.strip() for cell in find("exploitability, chips (sampled, 128 replies each, noise floor 0.0100)")]
    assert [cell for cell in cells if cell][1:] == ["0.5000", "0.0123", "0.2500"]
    assert [c.strip() for c in find("illegal moves") if c][1:] == ["0.00500", "0.00010", "0.00200"]
    assert [c.strip() for c in find("player 0, J, after nothing") if c][1:] == [
        "bet",
        "0.500",
        "0.200",
        "-",
        "0.000 to 0.333",
    ]
    assert [c.strip() for c in find("player 1, K, after bet") if c][1:] == ["call", "0.500", "1.000", "0.900", "1.000"]
    assert "nearest equilibrium: alpha = 0.210" in text
    assert [c.strip() for c in find("cfr") if c][1:] == [
        "player 0",
        "40",
        "0.500",
        "0.400 to 0.600",
        "-0.050",
        "-0.200 to +0.100",
    ]


def test_the_summary_of_a_run_without_plain_self_play_strategy_or_opponents():
    exploitability = METRICS["exploitability"] | {"plain": None, "final": None, "samples": None, "method": "exact"}
    text = format_summary(
        METRICS
        | {"exploitability": exploitability, "strategy": [], "results": [], "equilibrium_alpha": None}
        | {"model": {"name": "Qwen/Qwen3-4B-Base", "embedded": False}}
    )
    assert "exploitability, chips (exact)" in text and "0.5000" in text and " -" in text
    assert (
        "plain self-play  " not in text
        and "nearest" not in text
        and "opponent" not in text
        and "pretrained" not in text
    )
