"""recipes/free_bet.py: what a strategy of one set of rules is worth under the other, and a short run of both."""

import json
import sys

import pytest
from scripts import ROOT, load_script, run_python

from spiral_trl.games.kuhn_equilibrium import equilibrium


RECIPE = "recipes/free_bet.py"


@pytest.fixture(scope="module")
def recipe():
    return load_script(RECIPE)


def always(recipe, *choices):
    """The strategy that makes these choices wherever it can."""
    return {key: {action: float(action in choices) for action in actions} for key, actions in recipe.uniform().items()}


def test_always_betting_and_calling(recipe):
    """Right rules: against it, K wins 2, Q nothing on average, J gives up 1: 1/3 in either seat, so exploitability 1/3.
    Released rules: every hand goes to the higher card, which nobody can better."""
    figures = recipe.figures_of(always(recipe, "bet", "call"))
    assert figures["exploitability_right"] == pytest.approx(1 / 3)
    assert figures["exploitability_released"] == pytest.approx(0)
    assert (figures["value_right"], figures["value_released"]) == pytest.approx((0, 0))
    assert figures["bluff_open"] == figures["bluff_after_check"] == figures["call_J"] == 1 and figures["fold_J"] == 0
    assert figures["illegal"] == 0


def test_the_opener_stays_the_opener(recipe):
    """Kuhn's equilibrium with alpha 0, by hand under the released rules: either seat wins 2/9 by a best reply."""
    figures = recipe.figures_of(equilibrium(0.0))
    assert figures["exploitability_right"] == pytest.approx(0, abs=1e-12)
    assert figures["value_right"] == pytest.approx(-1 / 18)
    assert figures["exploitability_released"] == pytest.approx(2 / 9)
    # Facing a bet with Q: the opener after its check (bets of J, 1/3, and K, 1) calls 1/3; the other player never
    # faces one, since this opener never bets
    assert figures["call_Q"] == pytest.approx(1 / 3) and figures["fold_J"] == 1 and figures["fold_K"] == 0
    assert figures["bluff_open"] == 0 and figures["bluff_after_check"] == pytest.approx(1 / 3)


def test_a_place_that_is_never_met_has_no_frequency(recipe):
    figures = recipe.figures_of(always(recipe, "check", "call"))
    assert figures["fold_J"] is None and figures["call_K"] is None
    row = {"strategy": "checks", **figures}
    assert recipe.table([row]).splitlines()[-1].endswith("| - | - | - | - | - | - |")


def test_the_equilibria(recipe):
    right, released = (recipe.figures_of(recipe.equilibrium_of(rules)) for rules in ("right", "released"))
    assert right["exploitability_right"] < 1e-3 and released["exploitability_released"] < 1e-3
    assert right["value_right"] == pytest.approx(-1 / 18, abs=1e-3)
    assert released["value_released"] == pytest.approx(0, abs=1e-3)
    assert right["exploitability_released"] > 0.1 and released["exploitability_right"] > 0.1
    # Whoever holds Q or K never folds where bets are free
    assert released["fold_Q"] < 0.01 and released["fold_K"] < 0.01 and right["fold_Q"] > 0.3


def test_a_trained_strategy_is_read_by_the_order_of_acting(recipe):
    row = {"infoset": "1|J|", "actions": ["check", "bet"], "final": [0.25, 0.7]}
    assert recipe.trained("released", {"strategy": [row]}) == {"0|J|": {"check": 0.25, "bet": 0.7}}
    assert recipe.trained("right", {"strategy": [row]}) == {"1|J|": {"check": 0.25, "bet": 0.7}}
    with_mistakes = recipe.uniform() | {"0|J|": {"check": 0.25, "bet": 0.7}}
    policy = recipe.policy_of(with_mistakes, "released")
    assert sorted(policy.illegal)[-2:] == pytest.approx([0, 0.05])


def test_the_table_has_a_line_for_each_strategy(recipe):
    figures = recipe.figures_of(recipe.uniform())
    other = figures | {"exploitability_right": 0.5}
    rows = [{"strategy": name, **f} for name, f in (("random", figures), ("trained", figures), ("trained", other))]
    lines = recipe.table(rows).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| random | 0.458 | 0.375 | 0.125 | ")
    assert lines[3].startswith("| trained, 2 seeds | 0.479 (0.458 to 0.500) | ")


def launch(*arguments):
    return run_python(ROOT / RECIPE, *arguments)


@pytest.mark.slow
def test_a_short_run_and_what_is_left_of_it(recipe, tmp_path, monkeypatch, capsys):
    flags = (
        "--games_per_generation 32 --warm_start_steps 20 --eval_steps 2 --eval_games 8 --logging_steps 2 "
        "--ref_model_sync_steps 2 --report_pairs 10 --replays 2"
    ).split()
    arguments = ["--seeds", 4, "--max_steps", 2, "--output_dir", tmp_path / "out", "--", *flags]
    done = run_python(ROOT / RECIPE, *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-2].startswith("| trained under the right rules | ")
    assert done.stdout.splitlines()[-1].startswith("| trained under the released rules | ")
    path = tmp_path / "out" / "free_bet.json"
    written = json.loads(path.read_text())
    assert [row["seed"] for row in written["rows"]] == [None, None, None, 4, 4]
    for rules, game, row in zip(("right", "released"), written["games"].values(), written["rows"][3:], strict=True):
        metrics = json.loads((tmp_path / "out" / f"{rules}-4" / "metrics.json").read_text())
        assert (metrics["game"], metrics["training"]["max_steps"]) == (game, 2)
        # What was measured by the run itself, under its own rules
        assert row[f"exploitability_{rules}"] == pytest.approx(metrics["exploitability"]["final"], abs=1e-9)
        assert row["illegal"] > 0
    kept = [path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/model.safetensors")]
    # Again in this process, as nothing is trained
    monkeypatch.setattr(sys, "argv", [RECIPE, *map(str, arguments)])
    recipe.main()
    assert capsys.readouterr().out == done.stdout and json.loads(path.read_text()) == written
    assert [path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/model.safetensors")] == kept
    arguments[3] = 3
    monkeypatch.setattr(sys, "argv", [RECIPE, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        recipe.main()
    assert "right-4 holds a run of kuhn_poker(observation=compact) with seed 4 and 2 steps" in str(ended.value)
