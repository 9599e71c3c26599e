"""Board games of two players and perfect information in words: what tic-tac-toe and Connect Four share.

OpenSpiel keeps the rules; a game here is its state, in words. Prompts are made once for each position and remembered,
so that thousands of games cost little more than their moves.

The observation is one of three:

- `words`: rules, payoff, seat, all moves so far, the board, and the question;
- `latest`: the same without the moves so far, so that the prompt depends on the position alone;
- `compact`: one line of few distinct words, such as `player 1 board X . . . O . . . .`, row by row from the top. It
  depends on the position alone too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyspiel

from ..records import Ending, Message, Parsed, Turn
from .chance import Chance
from .parsing import parse_action
from .solver_state import SolverState


ROLES = ("player 0", "player 1")
MARKS = ("X", "O")
OBSERVATIONS = ("words", "latest", "compact")

# Positions remembered for each name of a game; all of tic-tac-toe's fit
_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class _Choice:
    """What many positions share: the legal actions and the words that ask for one."""

    legal: tuple[str, ...]
    actions: Mapping[str, int]
    question: str


@dataclass(frozen=True, slots=True)
class _Position:
    """What a seat is asked at a position. `tail` follows the moves so far where a prompt tells them; else `messages`
    is the prompt."""

    player: int
    choice: _Choice
    infoset: str
    tail: str
    messages: tuple[Message, ...]


class Board:
    """What all games of one name share.

    Args:
        name (`str`): Canonical name.
        engine (`pyspiel.Game`): OpenSpiel's game. Its action numbers are the actions of the text game.
        observation (`str`): `"words"`, `"latest"` or `"compact"`.
        introductions (`tuple[str, str]`): Rules, payoff and role, as each seat reads them.
        move (`str`): What a player did, before the action: `took` for `player 0 took 4`.
        draw (`Callable`): The board as text, from lines of `X`, `O` and `.`; ends with a line break.
    """

    def __init__(
        self,
        name: str,
        engine: pyspiel.Game,
        observation: str,
        introductions: tuple[str, str],
        move: str,
        draw: Callable[[str], str],
    ):
        self.name = name
        self.engine = engine
        self.observation = observation
        self.introductions = introductions
        self.move = move
        self.draw = draw
        self._positions: dict[str, _Position] = {}
        self._choices: dict[tuple[int, ...], _Choice] = {}

    def position(self, state: pyspiel.State) -> _Position:
        """What is asked where `state` stands."""
        board = str(state)
        position = self._positions.get(board)
        if position is None:
            if len(self._positions) >= _REMEMBERED:
                self._positions.clear()
            position = self._positions[board] = self._read(state, board)
        return position

    def _read(self, state: pyspiel.State, board: str) -> _Position:
        player = state.current_player()
        choice = self._choice(tuple(state.legal_actions()))
        board = board.strip().upper()
        infoset = f"{player}|" + board.replace("\n", "/")
        if self.observation == "compact":
            content = f"player {player} board " + " ".join(board.replace("\n", ""))
            return _Position(player, choice, infoset, "", (Message(role="user", content=content),))
        tail = f"Board (you play {MARKS[player]}):\n{self.draw(board)}{choice.question}"
        if self.observation == "words":
            return _Position(player, choice, infoset, tail, ())
        return _Position(
            player, choice, infoset, "", (Message(role="user", content=self.introductions[player] + tail),)
        )

    def _choice(self, numbers: tuple[int, ...]) -> _Choice:
        choice = self._choices.get(numbers)
        if choice is None:
            legal = tuple(map(str, numbers))
            listed = [f"[{action}]" for action in legal]
            choices = " or ".join(listed) if len(listed) < 3 else f"one of {', '.join(listed)}"
            if len(self._choices) >= _REMEMBERED:
                self._choices.clear()
            choice = self._choices[numbers] = _Choice(
                legal,
                dict(zip(legal, numbers, strict=True)),
                f"It is your turn. Choose {choices}. End your reply with exactly one action in square brackets, for "
                f"example {listed[-1]}; \\boxed{{{legal[-1]}}} is accepted too.",
            )
        return choice


class BoardGame:
    """A board game in words; a [`~spiral_trl.games.base.Game`]. Subclasses give the [`Board`]."""

    num_players = 2
    roles: tuple[str, ...] = ROLES
    worst_returns: tuple[float, ...] = (-1.0, -1.0)

    def __init__(self, board: Board):
        self._board = board
        self.name = board.name
        self.ending: Ending | None = None
        self._seed = 0
        self._moves: list[str] = []
        self._told = ""
        self._state: pyspiel.State | None = None
        self._position: _Position | None = None

    def reset(self, seed: int, chance: Chance | None = None) -> None:
        """The empty board. There is no chance: `seed` is only handed on to the players."""
        self._seed = seed
        self._moves = []
        self._told = ""
        self._state = self._board.engine.new_initial_state()
        self._position = self._board.position(self._state)
        self.ending = None

    def _asked(self) -> tuple[pyspiel.State, _Position]:
        if self._state is None or self._position is None:
            raise ValueError(
                f"{self.name}: nobody is asked; {'the game is over' if self.ending else 'reset it first'}"
            )
        return self._state, self._position

    def turns(self) -> Sequence[Turn]:
        """The seat to move, or nobody once the game is over."""
        if self.ending is not None:
            return ()
        state, position = self._asked()
        player, messages, infoset = position.player, position.messages, position.infoset
        if self._board.observation == "words":
            content = f"{self._board.introductions[player]}Moves so far: {self._told or 'none'}.\n{position.tail}"
            messages = (Message(role="user", content=content),)
            infoset = f"{player}|{' '.join(self._moves)}"
        return (
            Turn(
                game=self.name,
                episode=0,
                seed=self._seed,
                index=len(self._moves),
                player=player,
                role=ROLES[player],
                messages=messages,
                legal_actions=position.choice.legal,
                infoset=infoset,
                state=SolverState(state, position.choice.actions),
            ),
        )

    def parse(self, player: int, text: str) -> Parsed:
        """The action that `text` names for the seat that is asked."""
        _, position = self._asked()
        if player != position.player:
            raise ValueError(f"{self.name}: player {position.player} is asked, not player {player}")
        return parse_action(text, position.choice.legal)

    def step(self, actions: Mapping[int, str]) -> None:
        """Plays the action of the seat that is asked."""
        state, position = self._asked()
        action = actions.get(position.player, "")
        choice = position.choice
        if len(actions) != 1 or action not in choice.actions:
            raise ValueError(
                f"{self.name}: player {position.player} may play {' or '.join(choice.legal)}, not {dict(actions)}"
            )
        # A child and no change in place: turns that were handed out stand where they stood
        self._state = state = state.child(choice.actions[action])
        self._moves.append(action)
        self._told += f"{', ' if self._told else ''}{ROLES[position.player]} {self._board.move} {action}"
        if state.is_terminal():
            self.ending = Ending.TERMINAL
            self._position = None
        else:
            self._position = self._board.position(state)

    def returns(self) -> tuple[float, ...]:
        """+1 for the winner and -1 for the loser; 0 for both at a draw."""
        if self.ending is None or self._state is None:
            raise ValueError(f"{self.name}: the game is not over")
        return tuple(self._state.returns())
