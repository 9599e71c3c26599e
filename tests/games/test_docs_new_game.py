"""The game that the docs show, run as it stands there."""

import re
from pathlib import Path

import pytest

from spiral_trl.games import registry, tabulate
from spiral_trl.games.registry import make_game


DOCS = Path(__file__).resolve().parents[2] / "docs" / "new_game.md"
GAME, USE = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def last_stone(monkeypatch):
    monkeypatch.setattr(registry, "_GAMES", dict(registry._GAMES))
    registry._parse.cache_clear()
    tabulate.cache_clear()
    exec(GAME, {})
    yield
    registry._parse.cache_clear()
    tabulate.cache_clear()


def test_the_class_is_about_thirty_lines():
    body = re.search(r"class LastStone:.*?\n\n\n", GAME, re.DOTALL).group()
    assert len([line for line in body.splitlines() if line.strip()]) <= 32


def test_it_is_played_by_its_rules(last_stone):
    game = make_game("last_stone(stones=5)")
    game.reset(0)
    for action in ("1", "3"):
        assert action in game.turns()[0].legal_actions
        game.step({game.turns()[0].player: action})
    assert game.turns()[0].legal_actions == ("1",)
    assert game.parse(0, r"so \boxed{2}").action is None
    game.step({0: "1"})
    assert game.turns() == ()
    assert game.returns() == (1.0, -1.0)  # the first player took the last stone


def test_the_use_that_the_docs_show(last_stone, capsys):
    exec(USE, {})
    returns, exploitability = capsys.readouterr().out.splitlines()
    first, second = map(float, returns.strip("[]").split())
    assert first == -second
    # A best response to uniform play wins nearly always from either seat of seven stones: by backward induction, seat
    # by seat, over the distribution of uniform play.
    assert float(exploitability) == pytest.approx(_exploitability_of_uniform_play(7))


def _exploitability_of_uniform_play(stones: int) -> float:
    def best(left: int, mine: bool) -> float:
        """Value for the best responder with `left` stones, where `mine` says whose move it is."""
        if left == 0:
            return -1.0 if mine else 1.0
        values = [best(left - n, not mine) for n in range(1, min(3, left) + 1)]
        return max(values) if mine else sum(values) / len(values)

    return (best(stones, True) + best(stones, False)) / 2
