"""No private information of one seat in another's prompt, in games too large for a scan of their whole tree.

Two games are played side by side that differ in nothing but what one seat alone was dealt. While the same is public in
both, the other seat has to be asked the same, byte for byte.
"""

import random

import numpy as np
import pytest

from spiral_trl.games import make_game
from spiral_trl.games.chance import SeededChance


STYLES = ("words", "latest", "compact")


class OtherDeal:
    """The chance of a seed, but for the draws whose numbers are in `changed`."""

    def __init__(self, seed, changed):
        self.chance, self.other, self.changed = SeededChance(seed), SeededChance(seed + 10**9), changed
        self.drawn = 0

    def choose(self, probabilities):
        either = self.chance.choose(probabilities), self.other.choose(probabilities)
        self.drawn += 1
        return either[self.drawn - 1 in self.changed]


def asked(game):
    (turn,) = game.turns()
    return turn.messages, turn.legal_actions, turn.infoset, turn.index, turn.role


def chosen(turn, rng):
    if turn.legal_actions is None:
        return turn.state.sample_action(rng.random(8))
    return turn.legal_actions[int(rng.integers(len(turn.legal_actions)))]


def compare(game, other, seat, seed, is_public=lambda action: False, pieces=lambda game: None):
    """Plays `game` at random and `other` after it, holds what `seat` reads together, and answers how often it did and
    how often the seat with other cards read differently.

    It ends where the two games differ in public: where an action is not legal in both, after an action that
    `is_public`, and where there are fewer `pieces`.
    """
    rng = np.random.default_rng(seed)
    alike = different = 0
    whole = pieces(game)
    while game.turns() and pieces(game) == whole:
        (turn,) = game.turns()
        if turn.player == seat:
            assert asked(game) == asked(other)
            alike += 1
        else:
            assert other.turns()[0].player == turn.player
            different += turn.messages != other.turns()[0].messages
        action = chosen(turn, rng)
        if is_public(action) or other.parse(turn.player, f"[{action}]").action != action:
            break
        game.step({turn.player: action})
        other.step({turn.player: action})
    return alike, different


# ------------------------------------------------------------------------------------------------- games of our own


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("numdice", [2, 5])
def test_the_other_players_dice(style, numdice):
    name = f"liars_dice(numdice={numdice},observation={style})"
    for seat in (0, 1):
        total = np.zeros(2, dtype=int)
        for seed in range(40):
            dice = range((1 - seat) * numdice, (2 - seat) * numdice)
            games = [make_game(name), make_game(name)]
            games[0].reset(seed)
            games[1].reset(seed, chance=OtherDeal(seed, dice))
            total += compare(*games, seat, seed)
        assert min(total) > 50


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("resources", [5, 8])
def test_the_other_players_quantities_and_values(style, resources):
    name = f"simple_negotiation(resources={resources},observation={style})"
    for seat in (0, 1):
        first = (1 - seat) * 2 * resources
        quantities, values = (range(first + part, first + part + resources) for part in (0, resources))
        for changed in (values, (*quantities, *values)):
            total = np.zeros(2, dtype=int)
            for seed in range(10):
                games = [make_game(name), make_game(name)]
                games[0].reset(seed)
                games[1].reset(seed, chance=OtherDeal(seed, changed))
                total += compare(*games, seat, seed)
            # Other values forbid no move: all ten turns are compared
            assert list(total) == [50, 50] if changed is values else min(total) > 20


# ----------------------------------------------------------------------------------------------------- of TextArena


@pytest.fixture
def textarena():
    return pytest.importorskip("textarena")


def redrawn(monkeypatch, function, changed, other):
    """Makes `random.function` answer `other(drawn)` at the draws whose numbers are in `changed`, and draw on as before."""
    draw, count = getattr(random, function), 0

    def replacement(*arguments):
        nonlocal count
        drawn = draw(*arguments)
        count += 1
        return other(drawn, *arguments) if count - 1 in changed else drawn

    monkeypatch.setattr(random, function, replacement)


def two_games(name, seed, monkeypatch, change):
    """Two games, the second of which is dealt while `change(context)` is in force."""
    games = [make_game(name), make_game(name)]
    games[0].reset(seed)
    with monkeypatch.context() as context:
        change(context)
        games[1].reset(seed)
    return games


@pytest.mark.parametrize("style", STYLES[:2])
@pytest.mark.parametrize("seat", [0, 1])
def test_the_other_players_dice_in_textarena(textarena, monkeypatch, style, seat):
    total = np.zeros(2, dtype=int)
    for seed in range(12):
        generator = random.Random(seed)

        def change(context, generator=generator):
            dice = range((1 - seat) * 5, (2 - seat) * 5)
            redrawn(context, "randint", dice, lambda drawn, low, high: generator.randrange(low, high + 1))

        games = two_games(f"textarena:LiarsDice-v0(observation={style})", seed, monkeypatch, change)
        # A call tells how many dice show the face
        total += compare(*games, seat, seed, is_public="Call".__eq__)
    assert total[0] > 10 and total[1] > 5


@pytest.mark.parametrize("style", STYLES[:2])
@pytest.mark.parametrize("seat", [0, 1])
def test_the_other_players_resources_in_textarena(textarena, monkeypatch, style, seat):
    total = np.zeros(2, dtype=int)
    for seed in range(8):
        generator = random.Random(seed)

        def change(context, generator=generator):
            first = (1 - seat) * 5  # resources of both players, then values of both
            changed = (*range(first, first + 5), *range(first + 10, first + 15))
            redrawn(context, "randint", changed, lambda drawn, low, high: generator.randrange(low, high + 1))

        games = two_games(f"textarena:SimpleNegotiation-v0(observation={style})", seed, monkeypatch, change)
        total += compare(*games, seat, seed)
    assert min(total) > 25


@pytest.mark.parametrize("style", STYLES[:2])
def test_which_fact_is_right_in_textarena(textarena, monkeypatch, style):
    def flipped(drawn, *_):
        return {**drawn, "correct_fact": {"fact1": "fact2", "fact2": "fact1"}[drawn["correct_fact"]]}

    total = np.zeros(2, dtype=int)
    for seed in range(8):
        games = two_games(
            f"textarena:TruthAndDeception-v0(observation={style})",
            seed,
            monkeypatch,
            lambda context: redrawn(context, "choice", (0,), flipped),
        )
        total += compare(*games, 1, seed)
    assert min(total) >= 20


@pytest.mark.parametrize("style", STYLES[:2])
@pytest.mark.parametrize("seat", [0, 1])
def test_the_ranks_of_the_other_players_pieces_in_textarena(textarena, monkeypatch, style, seat):
    from textarena.envs.Stratego.env import StrategoEnv

    def change(context):
        populate = StrategoEnv._populate_board

        def exchanged(env):
            board = populate(env)
            ranks = {}
            for row in env.board:
                for cell in row:
                    if isinstance(cell, dict) and cell["player"] == 1 - seat:
                        ranks.setdefault(cell["rank"], cell)
            # Pieces that move alike, so that the same moves stay legal
            for one, other in (("Marshal", "Spy"), ("Miner", "General"), ("Sergeant", "Captain")):
                ranks[one]["rank"], ranks[other]["rank"] = other, one
            return board

        context.setattr(StrategoEnv, "_populate_board", exchanged)

    def standing(game):
        return sum(map(len, game._position.env.player_pieces.values()))

    total = np.zeros(2, dtype=int)
    for seed in range(4):
        games = two_games(f"textarena:Stratego-v0(observation={style})", seed, monkeypatch, change)
        # A battle tells ranks
        total += compare(*games, seat, seed, pieces=standing)
    assert min(total) > 10
