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

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyspiel

from ..records import Message
from .sequential import ROLES, SequentialGame, action_request
from .solver_state import SolverState


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
                action_request(choices, legal[-1]),
            )
        return choice


class BoardGame(SequentialGame[_Position]):
    """A board game in words; there is no chance. Subclasses give the [`Board`]."""

    def __init__(self, board: Board):
        super().__init__(board.name)
        self._board = board
        self._state = board.engine.new_initial_state()
        self._moves: list[str] = []
        self._told = ""

    def _deal(self) -> None:
        """The empty board."""
        self._moves = []
        self._told = ""
        self._state = self._board.engine.new_initial_state()
        self._position = self._board.position(self._state)

    def _mover(self, position: _Position) -> int:
        return position.player

    def _legal(self, position: _Position) -> Mapping[str, int]:
        return position.choice.actions

    def _messages(self, position: _Position, player: int) -> tuple[Message, ...]:
        return position.messages or super()._messages(position, player)

    def _observation(self, position: _Position, player: int) -> str:
        return f"{self._board.introductions[player]}Moves so far: {self._told or 'none'}.\n{position.tail}"

    def _infoset(self, position: _Position, player: int) -> str:
        """`player|moves` in `words`, `player|board` where the prompt tells the position alone."""
        return f"{player}|{' '.join(self._moves)}" if self._board.observation == "words" else position.infoset

    def _attached(self, position: _Position, player: int) -> SolverState:
        return SolverState(self._state, position.choice.actions)

    def _play(self, position: _Position, player: int, action: str) -> None:
        # A child and no change in place: turns that were handed out stand where they stood
        self._state = self._state.child(position.choice.actions[action])
        self._moves.append(action)
        self._told += f"{', ' if self._told else ''}{ROLES[player]} {self._board.move} {action}"
        if self._state.is_terminal():
            # +1 for the winner and -1 for the loser; 0 for both at a draw
            self._end(self._state.returns())
        else:
            self._position = self._board.position(self._state)
