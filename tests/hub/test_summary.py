"""Metrics are checked with clear errors, put into words with their method, and None is shown as such."""

import math

import pytest

from spiral_trl.hub.formatting import count, duration, interval, number, percent, probability
from spiral_trl.hub.rules import rules_of
from spiral_trl.hub.summary import summarise


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not measured"), (0, "0"), (0.8931, "0.893"), (0.01234, "0.0123"), (7e-5, "7.0e-5"), (12.345, "12.3"),
     (-0.0556, "−0.0556"), (-2e-4, "−2.0e-4"), (7168000.0, "7,168,000")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_other_figures():
    assert [percent(x) for x in (None, 0, 0.625, 0.0012, 0.00007, 2e-8)] == [
        "not measured", "0%", "62.5%", "0.12%", "0.007%", "2.0e-6%"
    ]  # fmt: skip
    assert [probability(x) for x in (None, 0, 0.001, 0.5, 0.999, 1)] == [
        "–",
        "0.00",
        "< 0.01",
        "0.50",
        "> 0.99",
        "1.00",
    ]
    assert [duration(x) for x in (None, 5.25, 130.4, 11100)] == ["not measured", "5.25 s", "2 min 10 s", "3 h 05 min"]
    assert interval([0.312, 0.231, 0.393]) == "0.31 [0.23, 0.39]"
    assert interval([-0.0123, -0.0151, -0.0095]) == "−0.0123 [−0.0151, −0.0095]"
    assert interval([0.61, 0.58, 0.64], share=True) == "61.0% [58.0, 64.0]"
    assert interval([0.61, None, None], share=True) == "61.0%"
    assert interval(None) == interval([None, None, None]) == "not measured"
    assert count(7168000) == "7,168,000"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("game"), "metrics has no 'game'"),
        (lambda m: m.update(gmae=m.pop("game")), "did you mean it by 'gmae'"),
        (lambda m: m.update(schema=2), "metrics['schema'] is 2; this version reads schema 1"),
        (lambda m: m.update(model={"name": None}), "metrics['model']['name'] is None; it must be a text"),
        (lambda m: m["exploitability"].update(start="x"), "metrics['exploitability']['start'] is 'x'"),
        (lambda m: m["exploitability"].update(method="exat"), "(nearest: exact)"),
        (lambda m: m["results"][1].update(win_rate=0.5), "metrics['results'][1]['win_rate'] is 0.5"),
        (lambda m: m["results"][1].pop("opponent"), "metrics['results'][1]"),
        (lambda m: m["strategy"][2].update(final=[1.0]), "metrics['strategy'][2]['final'] is [1.0]"),
        (lambda m: m["strategy"][2].update(equilibrium=[[0, 1]]), "one range for each action"),
        (lambda m: m["curves"]["plain"].append(3), "metrics['curves']['plain'][41] is 3"),
        (lambda m: m["curves"]["plain"][0].update(exploitability=True), "is True; it must be a number or null"),
        (lambda m: m.update(seconds=[1]), "metrics['seconds'] is [1]; it must be a dict"),
    ],
)
def test_bad_metrics_are_refused_by_name(metrics, change, message):
    change(metrics)
    with pytest.raises(ValueError) as error:
        summarise(metrics)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_dictionary_is_refused():
    with pytest.raises(ValueError, match="metrics is a list"):
        summarise([])


def test_every_exploitability_says_its_method(metrics):
    def tiles():
        run = summarise(metrics)
        return {tile.label: (tile.value, tile.note) for tile in run.tiles}, run.method_sentence

    exploitability = metrics["exploitability"]
    shown, sentence = tiles()
    assert shown["Exploitability after self-play"] == ("0.0123", "chips, exact")
    assert "measured exactly" in sentence and "an equilibrium has 0" in sentence
    exploitability.update(method="sampled", samples=128, floor=0.038)
    shown, sentence = tiles()
    assert shown["Exploitability at the start"] == ("0.893", "chips, sampled, K=128, floor 0.0380")
    assert "reads too high" in sentence
    exploitability.update(method="lower_bound")
    shown, sentence = tiles()
    assert shown["Exploitability after plain self-play"] == ("≥ 0.317", "chips, lower bound")
    assert "lower bound" in sentence
    exploitability.update(method=None, unit=None)
    assert tiles()[0]["Exploitability at the start"] == ("0.893", "method not recorded")


def test_nan_is_not_measured(metrics):
    metrics["exploitability"]["final"] = math.nan
    metrics["curves"]["self_play"][3]["exploitability"] = math.inf
    run = summarise(metrics)
    assert run.tiles[1].value == "not measured"
    assert len(run.curve("self_play", "exploitability")[0]) == 40
    assert len(run.curve("plain", "exploitability")[0]) == 41


def test_strategy_rows_have_distance_and_illegal_mass(metrics):
    metrics["strategy"] = metrics["strategy"][:1]
    metrics["strategy"][0].update(final=[0.5, 0.4], equilibrium=[[2 / 3, 1.0], [0.0, 1 / 3]])
    run = summarise(metrics)
    check, bet = run.strategy
    assert (check.label, check.action, bet.action) == ("J, first move", "check", "bet")
    assert check.outside == pytest.approx(2 / 3 - 0.5)
    assert bet.outside == pytest.approx(0.4 - 1 / 3)
    assert run.worst_illegal == pytest.approx(0.1)
    assert (check.band_text, bet.band_text) == ("0.67–1.00", "0.00–0.33")


def test_curves_go_by_step_where_games_are_not_counted(metrics):
    for points in metrics["curves"].values():
        for point in points:
            del point["games"]
    run = summarise(metrics)
    assert run.curve_axis == "step"
    assert run.curve("plain", "exploitability")[0][-1] == 3500


def test_several_training_games_are_named(metrics):
    assert "Trained on" not in dict(summarise(metrics).facts)
    metrics["games_trained"] = [metrics["game"], "pig"]
    assert dict(summarise(metrics).facts)["Trained on"] == "kuhn_poker(observation=compact), pig"


def test_rules_name_the_library_of_other_games():
    assert rules_of("kuhn_poker(rounds=5)").startswith("Each of two players antes")
    assert rules_of("openspiel:goofspiel(num_cards=4)") == "The rules are those of goofspiel as OpenSpiel plays it."
    assert rules_of("textarena:Snake-v0") == "The rules are those of Snake-v0 as TextArena plays it."


def with_games(metrics):
    """The metrics of a run on two games."""
    names = ("exploitability", "illegal_move_rate", "results", "strategy", "equilibrium_alpha", "curves")
    own = {name: metrics[name] for name in names}
    other = {
        "exploitability": {"start": 0.5, "final": 0.25, "plain": None, "method": "lower bound", "unit": "points"},
        "illegal_move_rate": {"start": 0.1, "final": 0.03, "plain": None},
        "results": [
            {
                "opponent": "<b>x</b>",
                "seat": 0,
                "role": "player 0",
                "games": 4,
                "win_rate": [0.5, 0.2, 0.8],
                "draw_rate": 0.0,
                "mean_return": None,
            }
        ],
        "curves": {"self_play": [{"step": 1, "exploitability": 0.25}]},
    }
    metrics["games_trained"] = [metrics["game"], "simple_negotiation"]
    metrics["by_game"] = {metrics["game"]: own, "simple_negotiation": other}
    return metrics


def test_the_figures_of_every_game(metrics):
    one = summarise(metrics)
    assert one.games == []
    run = summarise(with_games(metrics))
    assert [row.game for row in run.games] == [metrics["game"], "simple_negotiation"]
    other = run.games[1]
    assert other.exploitability == {"start": "≥ 0.500", "final": "≥ 0.250", "plain": "not measured"}
    assert other.illegal["final"] == "3.0%" and other.method == "lower bound, points"
    assert run.games[0].exploitability["final"] == "0.0123"
    assert [tile.value for tile in run.tiles] == [tile.value for tile in one.tiles]
    assert any("these games" in text for text in run.caveats) and any("this one game" in text for text in one.caveats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: g.update(exploitability={"final": "x"}),
            "metrics['by_game']['simple_negotiation']['exploitability']",
        ),
        (lambda g: g.update(results=[{}]), "metrics['by_game']['simple_negotiation']['results'][0]"),
        (lambda g: g.update(curves={"self_play": [{"step": "one"}]}), "['curves']['self_play'][0]['step'] is 'one'"),
        (lambda g: g.update(illegal_move_rate=3), "it must be a dict"),
    ],
)
def test_bad_figures_of_a_game_are_refused_by_name(metrics, change, message):
    changed = with_games(metrics)
    change(changed["by_game"]["simple_negotiation"])
    with pytest.raises(ValueError) as error:
        summarise(changed)
    assert message in str(error.value)


def test_every_game_stands_in_the_card_and_the_page(metrics, tmp_path):
    from spiral_trl.hub.card import write_model_card
    from spiral_trl.hub.report import write_report

    write_model_card(with_games(metrics), tmp_path / "README.md")
    card = (tmp_path / "README.md").read_text()
    assert "### Every game" in card and "| simple\\_negotiation | ≥ 0.500 |" in card and "<b>" not in card
    write_report(metrics, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'id="every-game"' in page and "simple_negotiation" in page and "<b>x" not in page
    del metrics["by_game"]
    write_report(metrics, [], tmp_path / "old.html")
    assert "every-game" not in (tmp_path / "old.html").read_text().split("</style>")[1]
