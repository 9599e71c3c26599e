"""Advantages of finished games: role-conditioned advantage estimation (RAE) and the baselines it is compared with.

An estimator is called with the [`~spiral_trl.records.Outcomes`] of a batch (all processes' games, in game order) and
answers one advantage per game and seat of the learner, shape `[G, P]`; other entries are NaN. The advantage stands for
the seat's whole part in the game: every token of every reply of that seat is weighted by it. What an opponent got in
its seat enters no baseline: a role's baseline is that of the learner in this role.

An estimator sees the same outcomes in the same order on every process, so its state stays equal on all of them
without being exchanged. The state is JSON, and floats survive JSON bit for bit, so a resumed run continues exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import accumulate
from math import isfinite
from typing import Any, Protocol

import numpy as np

from .records import Outcomes


class AdvantageEstimator(Protocol):
    """Turns the returns of a batch of games into advantages.

    Attributes:
        name (`str`): Short name, as in [`make_advantage`] and in saved states.
    """

    name: str

    def __call__(self, outcomes: Outcomes) -> np.ndarray:
        """Advantages `[G, P]` of `outcomes`, NaN but for the learner's seats. Updates the estimator's state."""
        ...

    @property
    def baselines(self) -> dict[tuple[str, str], float]:
        """Current baseline of each (game name, role), for logging; empty where the estimator keeps none."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved to continue exactly, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` answered.

        Raises:
            `ValueError`: If `state` was not saved by an estimator with the same name and decay.
        """
        ...


def _rows_by_game(outcomes: Outcomes) -> list[tuple[str, tuple[str, ...], np.ndarray]]:
    """`(game name, its roles, [n] rows in batch order)` for each game of the batch, after checking the returns."""
    parts = []
    for index, (game, roles) in enumerate(zip(outcomes.games, outcomes.roles, strict=True)):
        rows = np.flatnonzero(outcomes.game == index)
        returns = outcomes.returns[rows, : len(roles)]
        if returns.shape[1] != len(roles) or not np.isfinite(returns).all():
            raise ValueError(
                f"The returns of {game!r} have to be finite numbers for its {len(roles)} seats, but some are missing "
                "or not finite."
            )
        parts.append((game, roles, rows))
    return parts


def _groups(labels: Sequence[str]) -> dict[str, list[int]]:
    """Seats by label, both in seat order."""
    groups: dict[str, list[int]] = {}
    for seat, label in enumerate(labels):
        groups.setdefault(label, []).append(seat)
    return groups


def _moving_average_advantages(
    returns: np.ndarray, learner: np.ndarray, baseline: float, decay: float
) -> tuple[np.ndarray, float]:
    """Advantages `[n, seats]` of `returns`, NaN outside of `learner`, and the baseline after the last row.

    All seats of a row read the baseline before any of them updates it: a baseline that held the same game's return of
    another seat would depend on what this seat did, and bias the gradient.
    """
    keep = 1.0 - decay
    trace = list(accumulate(returns[learner].tolist(), lambda b, value: decay * b + keep * value, initial=baseline))
    seen = np.concatenate([[0], np.cumsum(learner.sum(1))])  # (n + 1,)
    before = np.array(trace)[seen[:-1], None]  # (n, 1)
    return np.where(learner, returns - before, np.nan), trace[-1]


def _check_state(name: str, state: Mapping[str, Any], keys: set[str]) -> None:
    if not isinstance(state, Mapping) or set(state) != keys:
        got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"A state of the advantage {name!r} has the entries {sorted(keys)}, not {got}.")
    if state["name"] != name:
        raise ValueError(
            f"The saved state belongs to the advantage {state['name']!r}, but this run uses {name!r}. "
            "Continue with the advantage the run started with."
        )


class _MovingBaseline(ABC):
    """Exponential moving averages of returns as baselines, one for each game and group of its seats."""

    name: str

    def __init__(self, decay: float = 0.95):
        if not isinstance(decay, (int, float)) or isinstance(decay, bool) or not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` of the advantage {self.name!r} has to lie in [0, 1), not {decay!r}.")
        self.decay = float(decay)
        self._baselines: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(decay={self.decay})"

    @abstractmethod
    def _labels(self, roles: tuple[str, ...]) -> Sequence[str]:
        """For each seat, which of the game's baselines it reads and updates."""

    @property
    def baselines(self) -> dict[tuple[str, str], float]:
        """Current baseline of each (game name, role), in the game's units."""
        return dict(self._baselines)

    def __call__(self, outcomes: Outcomes) -> np.ndarray:
        """Advantages `[G, P]` of `outcomes`, in the game's units; updates the baselines in batch order.

        A baseline that no seat of the learner has read yet is not listed.
        """
        advantages = np.full(outcomes.returns.shape, np.nan)
        for game, roles, rows in _rows_by_game(outcomes):
            if not len(rows):
                continue
            for label, seats in _groups(self._labels(roles)).items():
                cells = rows[:, None], seats
                if not outcomes.learner[cells].any():
                    continue
                before = self._baselines.get((game, label), 0.0)
                advantages[cells], self._baselines[game, label] = _moving_average_advantages(
                    outcomes.returns[cells], outcomes.learner[cells], before, self.decay
                )
        return advantages

    def state_dict(self) -> dict[str, Any]:
        """Name, decay and baselines, as JSON values."""
        baselines: dict[str, dict[str, float]] = {}
        for (game, label), value in self._baselines.items():
            baselines.setdefault(game, {})[label] = value
        return {"name": self.name, "decay": self.decay, "baselines": baselines}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` answered.

        Raises:
            `ValueError`: If `state` was saved by another advantage, with another decay, or holds no finite numbers.
        """
        _check_state(self.name, state, {"name", "decay", "baselines"})
        if state["decay"] != self.decay:
            raise ValueError(
                f"The saved baselines were averaged with decay {state['decay']!r}, but this run uses {self.decay!r}. "
                "Continue with the decay the run started with."
            )
        restored = {}
        for game, by_label in state["baselines"].items():
            for label, value in by_label.items():
                if not isinstance(value, (int, float)) or not isfinite(value):
                    raise ValueError(f"The saved baseline of {label!r} in {game!r} is {value!r}, not a finite number.")
                restored[game, label] = float(value)
        self._baselines = restored


class RoleConditionedAdvantage(_MovingBaseline):
    r"""Role-conditioned advantage estimation (RAE) of SPIRAL.

    For each game \\( G \\) and role \\( p \\), with a baseline \\( b_{G,p} \\) that starts at 0, and for the returns
    \\( R \\) of the games in batch order:

    $$ A = R - b_{G,p}, \qquad b_{G,p} \leftarrow \alpha \, b_{G,p} + (1 - \alpha) R . $$

    The baseline is read before it is updated, so it never contains the return that it is subtracted from. Equation 2
    and algorithm 1 of the [paper](https://huggingface.co/papers/2506.24119) print the other order, subtracting the
    updated baseline. The two differ by a constant factor exactly, \\( R - b_\text{new} = \alpha (R - b_\text{old}) \\):
    the printed order is this one with every advantage multiplied by \\( \alpha \\).

    Seats of one game that carry the same role name share a baseline and all read it before the game updates it.

    Args:
        decay (`float`, *optional*, defaults to `0.95`):
            \\( \alpha \\), in [0, 1). With 0 the baseline is the return of the game before.

    Example:

    ```python
    >>> advantage = RoleConditionedAdvantage(decay=0.95)
    >>> advantage(batch.outcomes)  # [G, P]
    ```
    """

    name = "rae"

    def _labels(self, roles: tuple[str, ...]) -> Sequence[str]:
        return roles


class SharedBaseline(_MovingBaseline):
    """One moving baseline for each game, shared by all its roles.

    The returns of a game enter the average seat by seat, from seat 0, after all seats have read it. In a zero-sum game
    the average stays near 0 whatever the roles are worth, so a seat's advantage keeps the value of its role in it:
    what RAE removes. The baseline is listed under the role `all`.

    Args:
        decay (`float`, *optional*, defaults to `0.95`):
            Weight that the average keeps at each return, in [0, 1).
    """

    name = "shared"

    def _labels(self, roles: tuple[str, ...]) -> Sequence[str]:
        return ["all"] * len(roles)


class _Stateless:
    """An estimator that carries nothing from one batch to the next."""

    name: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def baselines(self) -> dict[tuple[str, str], float]:
        """Empty: no baseline outlives a batch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The name alone."""
        return {"name": self.name}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checks that `state` is of the same advantage; there is nothing to restore.

        Raises:
            `ValueError`: If `state` was saved by another advantage.
        """
        _check_state(self.name, state, {"name"})


class RawReturns(_Stateless):
    """No baseline: the advantage is the return, in the game's units."""

    name = "none"

    def __call__(self, outcomes: Outcomes) -> np.ndarray:
        """The returns `[G, P]` of `outcomes`, NaN but for the learner's seats."""
        _rows_by_game(outcomes)
        return np.where(outcomes.learner, outcomes.returns, np.nan)


class LeaveOneOut(_Stateless):
    """The baseline is the learner's mean return in the same role over the batch's other games of the same name.

    Keeping a game out of its own baseline keeps the gradient unbiased. A game that is alone of its kind in the batch
    has a baseline of 0.
    """

    name = "leave_one_out"

    def __call__(self, outcomes: Outcomes) -> np.ndarray:
        """Advantages `[G, P]` of `outcomes`, in the game's units."""
        advantages = np.full(outcomes.returns.shape, np.nan)
        for _, roles, rows in _rows_by_game(outcomes):
            for seats in _groups(roles).values():
                cells = rows[:, None], seats
                learner = outcomes.learner[cells]  # (n, seats of the role)
                returns = np.where(learner, outcomes.returns[cells], 0.0)
                others = returns.sum() - returns.sum(axis=1, keepdims=True)
                count = learner.sum() - learner.sum(axis=1, keepdims=True)
                # A game that is alone of its kind has no others
                baseline = np.where(count > 0, others / np.maximum(count, 1), 0.0)
                advantages[cells] = np.where(learner, returns - baseline, np.nan)
        return advantages


_ESTIMATORS: dict[str, Callable[[float], AdvantageEstimator]] = {
    "rae": RoleConditionedAdvantage,
    "none": lambda decay: RawReturns(),
    "shared": SharedBaseline,
    "leave_one_out": lambda decay: LeaveOneOut(),
}


def make_advantage(name: str, decay: float = 0.95) -> AdvantageEstimator:
    """The advantage estimator called `name`.

    Args:
        name (`str`):
            `"rae"` ([`RoleConditionedAdvantage`]), `"none"` ([`RawReturns`]), `"shared"` ([`SharedBaseline`]) or
            `"leave_one_out"` ([`LeaveOneOut`]).
        decay (`float`, *optional*, defaults to `0.95`):
            Decay of the moving averages; `"none"` and `"leave_one_out"` have none.

    Raises:
        `ValueError`: If there is no such advantage, or `decay` is not in [0, 1).
    """
    if name not in _ESTIMATORS:
        near = get_close_matches(str(name), _ESTIMATORS, n=1, cutoff=0.0)[0]
        allowed = ", ".join(_ESTIMATORS)
        raise ValueError(f"There is no advantage {name!r}. Allowed are {allowed}; the nearest is {near!r}.")
    return _ESTIMATORS[name](decay)
