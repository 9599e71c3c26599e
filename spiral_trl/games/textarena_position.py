"""Where a game of TextArena stands: an environment that is tried on copies and keeps chance of its own."""

from __future__ import annotations

import contextlib
import copy
import io
import random
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NoReturn

import numpy as np

from .parsing import quoted
from .textarena_moves import ONLY, Seen, may_read, repair


_MOST_CHARS = 1000
_REASON_CHARS = 160

# Large constants of environments, which copies share
_SHARED = ("facts_data",)


def registry() -> Mapping[str, Any]:
    """TextArena's environments by id."""
    if find_spec("textarena") is None:
        raise ValueError("games of TextArena need an extra: pip install 'spiral-trl[textarena]'")
    from textarena.envs.registration import ENV_REGISTRY

    return ENV_REGISTRY


def kind_of(entry_point: str) -> str:
    """`Snake` for `textarena.envs.Snake.env:SnakeEnv`."""
    return entry_point.split(".")[2]


class _Refused(BaseException):
    """Raised in a copy of an environment where it calls a move invalid; passes its handlers of exceptions."""


def _refuse(reason: str, *args: object, **kwargs: object) -> NoReturn:
    raise _Refused(reason)


class _Generators:
    """The state of Python's and NumPy's global generators that belongs to one game."""

    def __init__(self, python: Any, numpy: Any):
        self.python, self.numpy = python, numpy

    @classmethod
    def seeded(cls, seed: int) -> _Generators:
        return cls(random.Random(seed).getstate(), np.random.RandomState(seed).get_state())

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the game's state in place of the global one, keeps what becomes of it, and restores the global one.
        What the environment prints is dropped."""
        python, numpy = random.getstate(), np.random.get_state()
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            self.python, self.numpy = random.getstate(), np.random.get_state()
            random.setstate(python)
            np.random.set_state(numpy)


class Position:
    """Where a game stands: an environment that is never stepped, only its copies are.

    Attributes:
        kind (`str`): TextArena's name of the environment, such as `Snake`.
        speaks (`bool`): Whether players talk, so that an action is a message rather than a command in brackets.
        seen (`tuple[tuple[Seen, ...], ...]`): What each seat has read.
        shown (`tuple[int, ...]`): How many of those messages each seat had read at its last turn.
    """

    def __init__(self, kind: str, env: Any, generators: _Generators, speaks: bool, seen: Any, shown: tuple[int, ...]):
        self.kind, self.env, self.generators, self.speaks = kind, env, generators, speaks
        self.shown = shown
        self.seen: tuple[tuple[Seen, ...], ...] = tuple(
            (*before, *self._new_messages(player)) for player, before in enumerate(seen)
        )
        env.state.logs = []  # every message once more, copied with each try
        repair(kind, env, self.seen[env.state.current_player_id])
        self._after: dict[str, Position | str] = {}

    @classmethod
    def start(cls, base: str, num_players: int, seed: int) -> Position:
        """The first position of a game."""
        import textarena

        forms = [registry()[name] for name in (base, f"{base}-train", f"{base}-raw") if name in registry()]
        wrappers = [wrapper for form in forms for wrapper in form.default_wrappers or ()]
        # Where TextArena puts no brackets around an action, the action is what a player says
        speaks = not any(wrapper is textarena.wrappers.ActionFormattingWrapper for wrapper in wrappers)
        generators = _Generators.seeded(seed)
        with generators.in_place():
            env = textarena.make(forms[-1].id)
            env.reset(num_players=num_players, seed=seed)
        kind = kind_of(str(forms[0].entry_point))
        return cls(kind, env, generators, speaks, ((),) * num_players, (0,) * num_players)

    def _new_messages(self, player: int) -> list[Seen]:
        sent = self.env.state.observations[player]
        self.env.state.observations[player] = []
        messages = [Seen(sender, str(text), kind.name) for sender, text, kind in sent]
        return [message for message in messages if may_read(self.kind, self.env, player, message)]

    @property
    def asked(self) -> int:
        """The seat to move."""
        return int(self.env.state.current_player_id)

    def after(self, action: str) -> Position | str:
        """The position after an action, or why it is illegal. Tried once."""
        if action not in self._after:
            self._after[action] = self._tried(action)
        return self._after[action]

    def _tried(self, action: str) -> Position | str:
        if not action:
            return "the action is empty"
        if len(action) > _MOST_CHARS:
            return f"the action is longer than {_MOST_CHARS:,} characters"
        if self.kind in ONLY and action.casefold() not in ONLY[self.kind]:
            return f"{quoted(action)} is no direction: {', '.join(ONLY[self.kind])}"
        # Others read what is said: its brackets must be no move, and no tag of a chat template
        said = action.replace("[", "(").replace("]", ")")
        outcome: Position | str = ""
        for text in (said, f"[{action}]") if self.speaks else (f"[{action}]",):
            outcome = self._stepped(text)
            if isinstance(outcome, Position):
                break
        return outcome

    def _stepped(self, text: str) -> Position | str:
        shared = {id(value): value for name in _SHARED if (value := getattr(self.env, name, None)) is not None}
        env = copy.deepcopy(self.env, shared)
        generators = _Generators(self.generators.python, self.generators.numpy)
        env.state.set_invalid_move = _refuse
        try:
            with generators.in_place():
                env.step(text)
        except _Refused as refused:
            return one_line(str(refused))
        except Exception as error:
            # Whatever a model writes must not end a run
            return f"TextArena cannot play {quoted(text)}: {type(error).__name__}"
        del env.state.set_invalid_move
        shown = tuple(len(seen) if player == self.asked else n for player, (n, seen) in enumerate(self._reading))
        return Position(self.kind, env, generators, self.speaks, self.seen, shown)

    @property
    def _reading(self) -> Iterator[tuple[int, tuple[Seen, ...]]]:
        return zip(self.shown, self.seen, strict=True)

    def returns(self) -> tuple[float, ...]:
        """The rewards at the end."""
        rewards = self.env.state.rewards or {}
        return tuple(float(rewards.get(player, 0.0)) for player in range(len(self.seen)))


def one_line(text: str) -> str:
    """A reason that TextArena gives, which may quote the reply."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * _REASON_CHARS]).split())[:_REASON_CHARS]
