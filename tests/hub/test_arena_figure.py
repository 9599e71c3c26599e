"""The picture of a round robin."""

import pytest

from spiral_trl.evaluation.arena import play_arena
from spiral_trl.hub.arena_figure import arena_picture
from spiral_trl.hub.figures import to_png
from spiral_trl.players.bots import CFRPlayer, RandomPlayer
from spiral_trl.players.search import MinimaxPlayer


KUHN = "kuhn_poker(observation=compact)"


def test_a_row_for_each_table_with_the_figures_in_its_cells(tmp_path):
    games = [KUHN, "tic_tac_toe"]
    result = play_arena(games, [RandomPlayer(), MinimaxPlayer(), CFRPlayer()], pairs=10, replicates=20)
    picture = arena_picture(result)
    assert "random +0" in picture.alt and "2 games together" in picture.alt
    figure = picture.draw()
    assert [len(part.get_axes()) for part in figure.subfigs] == [2] * len(result.tables)
    table = result.tables[0]
    axes = figure.subfigs[0].get_axes()[0]
    shown = {text.get_text() for text in axes.texts}
    assert f"{100 * table.score[0][1].estimate:.0f}" in shown
    assert f"{table.mean_return[0][1].estimate:+.2f}" in shown
    # Over several games there is no unit of returns
    assert not any("." in text.get_text() for text in figure.subfigs[-1].get_axes()[0].texts)
    to_png(picture, tmp_path / "arena.png")
    assert (tmp_path / "arena.png").read_bytes().startswith(b"\x89PNG")


def test_truncated_games_leave_no_ratings_to_draw():
    result = play_arena([KUHN], [RandomPlayer(), CFRPlayer()], pairs=2, max_turns=1)
    _, ratings = arena_picture(result).draw().subfigs[0].get_axes()
    assert "every game was truncated" in ratings.get_xlabel()


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="no two players met"):
        arena_picture(play_arena(["connect_four"], [RandomPlayer(), CFRPlayer()], pairs=2))
