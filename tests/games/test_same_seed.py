"""The same seed gives the same game, byte for byte: whatever else draws random numbers, and in any process."""

import json
import os
import random
from importlib.util import find_spec

import numpy as np
import pytest
from scripts import printed_by

from spiral_trl.games import game_names, make_game
from spiral_trl.games.registry import _GAMES
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.rollout import play


# With words of their own, in each observation style, and their harder variants
NAMED = [
    *(
        f"{game}(observation={style})"
        for game in game_names()
        for style in _GAMES[game].parameters["observation"].choices
    ),
    "kuhn_poker(rounds=5)",
    "kuhn_poker(rounds=3,rules=spiral,cards=5)",
    "tic_tac_toe(size=5)",
    "liars_dice(numdice=5)",
    "simple_negotiation(resources=8,talk=shown)",
    "pig(players=3)",
]
# Perfect and imperfect information, at once and in turn, chance everywhere, words that the adapter keeps
OPENSPIEL = [
    f"openspiel:{name}"
    for name in (
        "backgammon",
        "chess",
        "dark_hex(board_size=2)",
        "gin_rummy",
        "go_fish",
        "goofspiel",
        "kuhn_poker(players=4)",
        "leduc_poker",
        "liars_dice",
        "matrix_rps",
        "oshi_zumo",
        "phantom_go",
        "pig(players=3)",
        "skat",
        "universal_poker",
        "yacht",
    )
]
TEXTARENA = [
    f"textarena:{name}-v0"
    for name in (
        "ConnectFour",
        "LiarsDice",
        "PigDice",
        "SimpleNegotiation",
        "Snake",
        "Stratego",
        "TruthAndDeception",
    )
]
ALL = [*NAMED, *OPENSPIEL, *(TEXTARENA if find_spec("textarena") else ())]
SEEDS = (3, 11)


class Meddler(RandomPlayer):
    """Plays at random by the game's seed, and reseeds the global generators from the clock before and after."""

    def reply(self, turns):
        self.meddle()
        replies = super().reply(turns)
        self.meddle()
        return replies

    def meddle(self):
        random.seed(os.urandom(8))
        np.random.seed(int.from_bytes(os.urandom(4), "big"))


def transcript(name, seed, player=None):
    """All that is shown and said in a game of at most 30 turns, and how it ends."""
    seats = [player or RandomPlayer()] * make_game(name).num_players
    (episode,) = play(name, seats, [seed], max_turns=30, tabulated=False).episodes()
    told = [
        [turn.player, turn.role, turn.index, turn.messages, turn.legal_actions, turn.infoset, reply.text, reply.action]
        for turn, reply in ((step.turn, step.reply) for step in episode.steps)
    ]
    return json.dumps([episode.game, told, episode.ending.value, episode.returns])


@pytest.fixture(scope="module")
def transcripts():
    return {name: [transcript(name, seed) for seed in SEEDS] for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_whatever_else_draws_random_numbers(name, transcripts):
    assert [transcript(name, seed, Meddler()) for seed in SEEDS] == transcripts[name]


def test_other_seeds_give_other_games(transcripts):
    alike = {name for name, (one, other) in transcripts.items() if one == other}
    assert alike == set()


def test_in_another_process(transcripts):
    code = (
        "import json; from test_same_seed import *; "
        "print(json.dumps({name: [transcript(name, seed) for seed in SEEDS] for name in ALL}))"
    )
    theirs = json.loads(printed_by(code, PYTHONHASHSEED="1"))
    assert list(theirs) == ALL
    for name in ALL:
        assert theirs[name] == transcripts[name], name
