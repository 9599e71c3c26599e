"""Every game answers misuse in one line that names it, and goes on as if nothing had happened."""

import re
from importlib.util import find_spec

import pytest
from playthrough import next_action

from spiral_trl.games import canonical_name, game_names, make_game
from spiral_trl.games.base import Game
from spiral_trl.games.registry import _GAMES


NAMES = [
    *(
        f"{game}(observation={style})"
        for game in game_names()
        for style in _GAMES[game].parameters["observation"].choices
    ),
    "kuhn_poker(rounds=3,rules=spiral)",
    "pig(target=10,players=3)",
    "openspiel:tic_tac_toe",
    "openspiel:leduc_poker(players=3)",
    *(("textarena:PigDice-v0",) if find_spec("textarena") else ()),
]


def refused(message, call, *args):
    with pytest.raises(ValueError, match=message) as error:
        call(*args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_misuse(name):
    game = make_game(name)
    assert isinstance(game, Game) and game.name == canonical_name(name)
    for call, *args in ((game.turns,), (game.parse, 0, "[x]"), (game.step, {}), (game.step, {0: "x"})):
        refused("reset it first", call, *args)

    game.reset(0)
    refused("the game is not over", game.returns)
    first = game.turns()
    (turn,) = first
    player, other, action = turn.player, (turn.player + 1) % game.num_players, next_action(turn, 0)
    refused(f"player {player} is asked, not player {other}", game.parse, other, f"[{action}]")
    for actions in ({}, {other: action}, {player: action, other: action}):
        refused(rf"player {player} (may play .*|is asked), not|player \d cannot play", game.step, actions)
    refused(
        r"player \d (may play .+, not|cannot play)|is not legal|cannot be read|is no", game.step, {player: "x y z"}
    )
    parsed = game.parse(player, "[x y z]")
    assert parsed.action is None and parsed.error and "\n" not in parsed.error
    if turn.legal_actions is not None:
        assert parsed.error.startswith(f"'x y z' is not legal here; legal: [{turn.legal_actions[0]}]")
        if not name.startswith("openspiel:"):
            allowed = re.escape(" or ".join(turn.legal_actions))
            for actions in ({}, {other: action}, {player: "x y z"}):
                refused(f"player {player} may play {allowed}, not ", game.step, actions)
    assert game.turns() == first and game.ending is None

    while turns := game.turns():
        game.step({turn.player: next_action(turn, 0) for turn in turns})
    assert len(game.returns()) == game.num_players
    for call, *args in ((game.step, {player: action}), (game.parse, player, f"[{action}]")):
        refused("the game is over", call, *args)

    game.reset(0)
    assert game.ending is None and game.turns()[0].index == 0
    assert game.turns()[0].messages == turn.messages
