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

# Positions remembered for each name of a game; all of tic-tac-toe's fit. A position takes about 2 kB.
_REMEMBERED = 50_000


@dataclass(frozen=True, slots=True)
class _Position:
    """What a seat is asked at a position. `question` follows the moves so far; `messages` is for prompts without."""

    player: int
    legal: tuple[str, ...]
    actions: Mapping[str, int]
    infoset: str
    question: str
    messages: tuple[Message, ...]


class Board:
    """What all games of one name share.

    Args:
        name (`str`): Canonical name.
        engine (`pyspiel.Game`): OpenSpiel's game. Its action numbers are the actions of the text game.
        observation (`str`): `"words"`, `"latest"` or `"compact"`.
        introductions (`tuple[str, str]`): Rules, payoff and role, as each seat reads them.
        move (`str`): What a player did, before the action: `took` for `player 0 took 4`.
        draw (`Callable`): The board as text, from its rows of `X`, `O` and `.`; ends with a line break.
    """

    def __init__(
        self,
        name: str,
        engine: pyspiel.Game,
        observation: str,
        introductions: tuple[str, str],
        move: str,
        draw: Callable[[list[str]], str],
    ):
        self.name = name
        self.engine = engine
        self.observation = observation
        self.introductions = introductions
        self.move = move
        self.draw = draw
        self._positions: dict[str, _Position] = {}

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
        actions = {str(action): action for action in state.legal_actions()}
        legal = tuple(actions)
        rows = board.strip().upper().split("\n")
        question = (
            f"Board (you play {MARKS[player]}):\n{self.draw(rows)}"
            f"It is your turn. Choose {_listed(legal)}. End your reply with exactly one action in square brackets, "
            f"for example [{legal[-1]}]; \\boxed{{{legal[-1]}}} is accepted too."
        )
        if self.observation == "compact":
            content = f"player {player} board {' '.join(''.join(rows))}"
        else:
            content = self.introductions[player] + question
        message: Message = {"role": "user", "content": content}
        return _Position(player, legal, actions, f"{player}|{'/'.join(rows)}", question, (message,))


def _listed(legal: Sequence[str]) -> str:
    bracketed = [f"[{action}]" for action in legal]
    return " or ".join(bracketed) if len(bracketed) < 3 else f"one of {', '.join(bracketed)}"


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
            content = f"{self._board.introductions[player]}Moves so far: {self._told or 'none'}.\n{position.question}"
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
                legal_actions=position.legal,
                infoset=infoset,
                state=SolverState(state, position.actions),
            ),
        )

    def parse(self, player: int, text: str) -> Parsed:
        """The action that `text` names for the seat that is asked."""
        _, position = self._asked()
        if player != position.player:
            raise ValueError(f"{self.name}: player {position.player} is asked, not player {player}")
        return parse_action(text, position.legal)

    def step(self, actions: Mapping[int, str]) -> None:
        """Plays the action of the seat that is asked."""
        state, position = self._asked()
        action = actions.get(position.player, "")
        if len(actions) != 1 or action not in position.actions:
            raise ValueError(
                f"{self.name}: player {position.player} may play {' or '.join(position.legal)}, not {dict(actions)}"
            )
        # A child and no change in place: turns that were handed out stand where they stood
        self._state = state = state.child(position.actions[action])
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
