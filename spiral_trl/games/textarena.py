r"""Any game of TextArena, as `textarena:ID`, such as `textarena:Snake-v0`; needs the extra `textarena`.

The environment is used without its wrappers, since those pass whole replies on to the other seats. What holds here
and not there:

- Only the action is played, and so broadcast: what stands in the last `\boxed{...}`, or without one in the one pair
  of brackets that is legal. Reasoning reaches nobody.
- A reply is tried on a copy of the environment. What that refuses is an illegal reply and changes nothing; our
  illegal-move policies decide what follows, not TextArena's second chance and -1/+1.
- Chance derives from the seed alone, whatever other code does with Python's and NumPy's global generators.
- Stratego's boards reach only the seat whose pieces they show, and who cannot move there has lost.

Rules and rewards are TextArena's otherwise, faults included: in its `SimpleNegotiation-v0` a denied offer stays open,
in its `KuhnPoker-v0` bets move no chips. Rewards are from -1 to 1; with more than two players, and in some games of
mixed motives, they need not add up to zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

from ..errors import did_you_mean
from ..names import Parameter, read_parameters, split_name
from ..records import Parsed
from .base import Game
from .parsing import ambiguous, quoted, stated, unwrapped
from .registry import register_source
from .sequential import SequentialGame
from .textarena_moves import candidates
from .textarena_position import Position, kind_of, one_line, registry


PREFIX = "textarena"
PARAMETERS = {
    "observation": Parameter("words", choices=("words", "latest")),
    "num_players": Parameter(2, int, low=2, high=15),
}

# Environments that two players can play offline for rewards that add up to zero, in TextArena 0.7.4 on Python 3.11.
# Others are for one player, for three or more or of mixed motives, or need word lists, an API key or files that the
# package does not ship; where they start they can still be named.
TWO_PLAYERS = frozenset(
    "Alquerque Battleship Breakthrough Briscola Chopsticks ColonelBlotto ConnectFour Crusade GameOfPureStrategy "
    "GermanWhist Golf HighSociety IndianPoker IteratedMatchingPennies IteratedPrisonersDilemma "
    "IteratedRockPaperScissors IteratedTwoThirdsAverage IteratedUltimatumGame KuhnPoker LiarsDice LinesOfAction "
    "MemoryGame Nim Othello PigDice Poker QuantumTicTacToe Santorini SimpleBlindAuction SimpleNegotiation SimpleTak "
    "Snake SpiteAndMalice Stratego Surround Tak TicTacToe TruthAndDeception UltimateTicTacToe WildTicTacToe".split()
)
# Environments that read a part of the action outside of its brackets
_BESIDE_BRACKETS = frozenset({"NewRecruit", "TwoDollar"})

_MOST_BRACKETS = 8
_MOST_TRIES = 200
_EXAMPLE_TRIES = 20
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_GAME = -1  # the sender of the game's own messages


def _plain_id(name: str) -> str:
    """The id without the suffix that says how TextArena wraps the environment."""
    return name.removesuffix("-raw").removesuffix("-train")


class TextArenaSource:
    """The library behind `textarena:`; a [`~spiral_trl.games.registry.GameSource`].

    Parameters of every game: `observation`, which is `words` (all that the seat has read) or `latest` (the rules and
    the newest board with what came after it, or without boards what came after the seat's last turn), and
    `num_players`.
    """

    def names(self) -> list[str]:
        """Ids of the games that two players can play offline, sorted."""
        return sorted(
            {_plain_id(name) for name, spec in registry().items() if kind_of(str(spec.entry_point)) in TWO_PLAYERS}
        )

    def parse(self, name: str) -> tuple[str, dict[str, Any], str]:
        """Base name, values of the parameters, canonical name. The game is started once, to see that it can be."""
        base, given = split_name(name, "game")
        known = registry()
        base = _plain_id(base)
        if base not in known:
            near = did_you_mean(base, {_plain_id(other) for other in known})
            raise ValueError(f"TextArena has no game {base!r}; 'spiral-trl games --source {PREFIX}' lists them{near}")
        values, canonical = read_parameters(base, given, PARAMETERS)
        if kind_of(str(known[base].entry_point)) in _BESIDE_BRACKETS:
            raise ValueError(f"{PREFIX}:{base} cannot be played: its actions do not stand within one pair of brackets")
        problem = _start_problem(base, values["num_players"])
        if problem is not None:
            raise ValueError(f"{PREFIX}:{canonical} cannot be played: {problem}")
        return base, values, canonical

    def make(self, name: str) -> Game:
        """A new game."""
        base, values, canonical = self.parse(name)
        return TextArenaGame(base, name=f"{PREFIX}:{canonical}", **values)


@lru_cache(maxsize=256)
def _start_problem(base: str, num_players: int) -> str | None:
    """Why a game cannot be started here; `None` where it can."""
    try:
        Position.start(base, num_players, 0)
    except Exception as error:
        # The library's own checks, missing files and data, and files that this Python cannot read, all alike
        lines = [one_line(line.strip(" *")) for line in str(error).splitlines()]
        reason = next((line for line in lines if line), "")
        return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return None


def _plain(content: str) -> str:
    """An action as it is played and read by others: one line, without what a chat template could take for a tag."""
    return " ".join("".join(c if c.isprintable() else " " for c in content).replace("<", "(").split())


class _TriedActions:
    """Random legal moves, found by trying; an [`~spiral_trl.games.base.ActionSampler`] of one turn."""

    def __init__(self, game: TextArenaGame, index: int, moves: list[str]):
        self._game, self._index, self._moves = game, index, moves

    @cached_property
    def example_actions(self) -> tuple[str, ...]:
        """One action that is legal now, or none where the first few tries find none."""
        # No more: each costs a copy of the environment, and this is read wherever the protocol is checked
        return tuple(islice(filter(self._is_legal, dict.fromkeys(self._moves[:_EXAMPLE_TRIES])), 1))

    def sample_action(self, draws: Sequence[float]) -> str:
        """A random legal action: from a random place on, the first of the moves to try that is legal."""
        first = int(draws[0] * len(self._moves))
        for move in [*self._moves[first:], *self._moves[:first]][:_MOST_TRIES]:
            if self._is_legal(move):
                return move
        raise ValueError(f"{self._game.name}: no legal action was found by trying")

    def _is_legal(self, move: str) -> bool:
        return isinstance(self._game.try_action(move, self._index), Position)


class TextArenaGame(SequentialGame[Position]):
    """A game of TextArena; a [`~spiral_trl.games.base.Game`] with free-text actions, for which see the module.

    Args:
        base (`str`): TextArena's id.
        name (`str`): Canonical name of the game.
        observation (`str`): `"words"` or `"latest"`; see [`TextArenaSource`].
        num_players (`int`): Number of seats.
    """

    def __init__(self, base: str, name: str, observation: str, num_players: int):
        super().__init__(name)
        self.num_players = num_players
        self.roles = tuple(f"player {player}" for player in range(num_players))
        self.worst_returns = (-1.0,) * num_players
        self._base = base
        self._latest = observation == "latest"

    def _deal(self) -> None:
        """Starts a new environment. Its seed is drawn as four choices of a byte; later chance is the environment's."""
        environment_seed = 0
        for _ in range(4):
            environment_seed = 256 * environment_seed + self._chance.choose((1 / 256,) * 256)
        self._move_to(Position.start(self._base, self.num_players, environment_seed))

    def _move_to(self, position: Position) -> None:
        # A finished game may live on in its turns' `state`
        self._position = None if position.env.state.done else position
        if self._position is None:
            self._end(position.returns())

    def _mover(self, position: Position) -> int:
        return position.asked

    def _legal(self, position: Position) -> None:
        return None

    def _infoset(self, position: Position, player: int) -> None:
        return None

    def _attached(self, position: Position, player: int) -> _TriedActions | None:
        moves = candidates(position.kind, position.env, position.seen[player])
        return _TriedActions(self, self._index, moves) if moves else None

    def _observation(self, position: Position, player: int) -> str:
        seen = position.seen[player]
        if self._latest:
            boards = [i for i, message in enumerate(seen) if message.kind == "GAME_BOARD"]
            start = boards[-1] if boards else position.shown[player]
            seen = (*(message for message in seen[:start] if message.kind == "PROMPT"), *seen[start:])
        names = position.env.state.role_mapping
        lines = [
            message.text.strip("\n")
            if message.sender == _GAME
            else f"[{names.get(message.sender, f'Player {message.sender}')}] {message.text}"
            for message in seen
        ]
        if position.speaks:
            closing = "Put what you say, or your final choice, in \\boxed{}. Nothing else of your reply is passed on."
        else:
            closing = (
                "End your reply with exactly one action, in square brackets as above or in \\boxed{}. Nothing else of "
                "your reply is passed on."
            )
        return "\n".join([*lines, closing])

    def try_action(self, action: str, index: int) -> Position | str:
        """What an action leads to at turn `index`, which must be the current one, or why it is illegal."""
        position = self._standing()
        if index != self._index:
            raise ValueError(f"{self.name}: turn {index} is over, the game stands at turn {self._index}")
        return position.after(action)

    def _read(self, position: Position, text: str) -> Parsed:
        r"""What stands in the last `\boxed{...}` is the action; where the game's actions stand in brackets and the box
        holds one pair of brackets, what is in them. Without a box, brackets decide: exactly one of them must be legal.
        """
        said = stated(text)
        if said.error is not None:
            return Parsed(None, said.error)
        named: dict[str, str] = {}
        for content in said.contents:
            action = self._content(content, position.speaks)
            if action is None:
                return Parsed(None, f"the reply is ambiguous: {quoted(content)} holds several actions")
            named.setdefault(action.casefold(), action)
        if not named:
            return Parsed(None, "the reply names no action in brackets")
        if len(named) > _MOST_BRACKETS:
            return Parsed(None, f"the reply is ambiguous: it holds {len(named)} different texts in brackets")
        legal = [action for action in named.values() if isinstance(position.after(action), Position)]
        if len(legal) == 1:
            return Parsed(legal[0])
        if legal:
            return Parsed(None, ambiguous([quoted(action)[1:-1] for action in legal]))
        return Parsed(None, str(position.after(list(named.values())[-1])))

    def _content(self, content: str, speaks: bool) -> str | None:
        """The action in the content of a box or of brackets; `None` where it holds several."""
        *_, inner = unwrapped(content)
        if not speaks and ("[" in inner or "]" in inner):
            pairs = set(_BRACKETS.findall(content))
            if len(pairs) != 1:
                return None
            (inner,) = pairs
        return _plain(inner)

    def _play(self, position: Position, player: int, action: str) -> None:
        after = position.after(action)
        if isinstance(after, str):
            raise ValueError(f"{self.name}: {quoted(action)} is not legal: {after}")
        self._move_to(after)


register_source(PREFIX, TextArenaSource())
