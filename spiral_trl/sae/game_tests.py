"""Tests of features against variables of games: for every role, variable, position, layer and feature, and the control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .association import Design, direction, effects, purity, resampled_effects, score_test, shuffled
from .discoveries import benjamini_hochberg
from .game_variables import RoleSteps, Variable
from .step_codes import DECISION, POSITIONS, StepCodes
from .store import Store


if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

Columns = dict[str, np.ndarray]

_REPLICATES = 400


@dataclass(frozen=True, eq=False)
class Subject:
    """What is tested: a variable of a role.

    Args:
        number (`int`): Of the role, among those that are tested.
        role ([`~spiral_trl.sae.game_variables.RoleSteps`]), variable ([`~spiral_trl.sae.game_variables.Variable`]): It.
        shuffles (`tuple[np.ndarray, ...]`): Its values, dealt anew between games.
    """

    number: int
    role: RoleSteps
    variable: Variable
    shuffles: tuple[np.ndarray, ...]


class GameTests:
    """The tests on one store, or on two of the same tokens.

    Args:
        stores (`Sequence[Store]`): Codes of a model; of two, those before training first.
        roles (`Sequence[RoleSteps]`): The steps of the games. Those that the stores do not have are left out.
        min_games (`int`): Games in which a feature has to fire to be tested.
        permutations (`int`): How often each variable is dealt anew.
        seed (`int`): Of that, and of intervals.

    Attributes:
        subjects (`list[Subject]`): The variables.
        roles (`list[RoleSteps]`): The roles with enough games.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the stores hold other games, or too few.
    """

    def __init__(
        self, stores: Sequence[Store], roles: Sequence[RoleSteps], min_games: int, permutations: int, seed: int
    ):
        self.min_games = min_games
        self.seed = seed
        self.roles: list[RoleSteps] = []
        self.subjects: list[Subject] = []
        self._codes = [StepCodes.of(store) for store in stores]
        self._steps: list[np.ndarray] = []
        # For each shuffle the p of all tests at the decision token
        self._null: list[list[np.ndarray]] = [[] for _ in range(permutations)]
        self._newest: tuple[tuple[int, str] | None, list[csr_array]] = (None, [])
        self._place(roles)
        generator = np.random.default_rng(seed)
        for number, role in enumerate(self.roles):
            for variable in role.variables:
                dealt = (shuffled(variable.values, role.group, generator) for _ in range(permutations))
                self.subjects.append(Subject(number, role, variable, tuple(dealt)))

    def _place(self, roles: Sequence[RoleSteps]) -> None:
        """Finds the steps of the roles in the stores."""
        known = self._codes[0]
        missing = len(known)
        for role in roles:
            step = known.find(role.group, role.turn, role.player)
            missing -= int((step >= 0).sum())
            kept = _kept(role, step >= 0)
            if len(np.unique(kept.group)) >= self.min_games and kept.variables:
                self.roles.append(kept)
                self._steps.append(step[step >= 0])
        if missing:
            raise UsageError(
                f"{missing} of the {len(known)} steps in {known.store.folder} are not in the episodes: the codes are of "
                "other games"
            )
        if not self.roles:
            raise UsageError(f"no role has steps in {self.min_games} games, which is what a test needs at least")

    def layer(self, layer: int, position: str) -> tuple[list[Columns], dict[int, float]]:
        """Tests of all subjects at one layer and position.

        Returns:
            `tuple[list[Columns], dict[int, float]]`: Columns of the tests of each subject that varies, and for each
            subject the mean best effect that chance gives, at the decision token.
        """
        found: list[Columns] = []
        chances = {}
        for number, role in enumerate(self.roles):
            models = [codes[self._steps[number]].tocsc() for codes in self._load(layer, position)]
            firing = [_games_firing(codes, role.group) for codes in models]
            features = np.flatnonzero(np.max(firing, axis=0) >= self.min_games)
            models = [codes[:, features] for codes in models]
            for place, subject in enumerate(self.subjects):
                if subject.number != number or not len(features):
                    continue
                design = Design.of(subject.variable, role.group)
                if not design.varies:
                    continue
                columns = _tested(design, [_rows(codes, design) for codes in models])
                count = len(features)
                found.append(
                    {
                        "subject": np.full(count, place, dtype=np.int32),
                        "position": np.full(count, POSITIONS.index(position), dtype=np.int8),
                        "layer": np.full(count, layer, dtype=np.int16),
                        "feature": features.astype(np.int32),
                        "games": firing[-1][features].astype(np.int32),
                        **columns,
                    }
                )
                if position == DECISION:
                    chances[place] = self._chance(subject, models[-1])
        return found, chances

    def _load(self, layer: int, position: str) -> list[csr_array]:
        """Codes of the models at all steps; the newest are kept."""
        if self._newest[0] != (layer, position):
            self._newest = (layer, position), [codes.codes(layer, position) for codes in self._codes]
        return self._newest[1]

    def _chance(self, subject: Subject, codes: csc_array) -> float:
        """The mean best effect where the variable is dealt anew."""
        best = []
        for values, null in zip(subject.shuffles, self._null, strict=True):
            design = Design.of(subject.variable, subject.role.group, values)
            rows = _rows(codes, design)
            best.append(effects(design, rows).max(initial=0.0))
            null.append(score_test(design, rows))
        return float(np.mean(best)) if best else 0.0

    def control(self, rate: float) -> dict[str, Any]:
        """Discoveries at the decision token where variables are dealt anew, by the same rule."""
        found = [int((benjamini_hochberg(np.concatenate(p)) <= rate).sum()) for p in self._null if p]
        tests = sum(map(len, self._null[0])) if self._null else 0
        return {"position": DECISION, "tests": tests, "discoveries": found}

    def changes(self, subject: Subject, position: str, layer: int, features: np.ndarray) -> np.ndarray:
        """`(3, f)` the effect in the second store less that in the first, and the ends of its 95% interval from
        resampling games."""
        design = Design.of(subject.variable, subject.role.group)
        generator = np.random.default_rng((self.seed, layer, POSITIONS.index(position)))
        games = design.num_games
        weights = generator.multinomial(games, np.full(games, 1 / games), size=_REPLICATES).astype(np.float64)
        steps = self._steps[subject.number][design.rows]
        estimates, drawn = [], []
        for codes in self._load(layer, position):
            dense = codes[steps].tocsc()[:, features]
            estimates.append(effects(design, dense))
            drawn.append(resampled_effects(design, dense.toarray(), weights))
        low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975], axis=0)
        return np.stack([estimates[1] - estimates[0], low, high])


def _tested(design: Design, models: Sequence[csc_array]) -> Columns:
    """Effects and probabilities of the last model, and of the one before where there are two."""
    last = models[-1]
    columns = {
        "effect": effects(design, last),
        "sign": direction(design, last).astype(np.int8),
        "p": score_test(design, last),
    }
    if len(models) > 1:
        columns |= {"effect_before": effects(design, models[0]), "p_before": score_test(design, models[0])}
    level, precision, recall = purity(design, last) if design.categorical else (None, None, None)
    nothing = np.full(last.shape[1], np.nan)
    return columns | {
        "level": np.full(last.shape[1], -1, dtype=np.int16) if level is None else design.levels[level],
        "precision": nothing if precision is None else precision,
        "recall": nothing if recall is None else recall,
    }


def adjusted(parts: Sequence[Columns]) -> Columns:
    """All tests in one table, with `q` over all of them, of both models.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are none.
    """
    if not parts:
        raise UsageError("no feature fires in enough games for a test")
    tests = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if "p_before" in tests:
        q = benjamini_hochberg(np.concatenate([tests["p"], tests["p_before"]]))
        tests["q"], tests["q_before"] = np.split(q, 2)
    else:
        tests["q"] = benjamini_hochberg(tests["p"])
    return tests


def chosen(tests: Columns, where: np.ndarray) -> Columns:
    """Some of the tests: those at `where`, a mask or places."""
    return {name: column[where] for name, column in tests.items()}


def _kept(role: RoleSteps, there: np.ndarray) -> RoleSteps:
    """A role with those of its steps alone that the store has."""
    if there.all():
        return role
    return replace(
        role,
        group=role.group[there],
        turn=role.turn[there],
        step=role.step[there],
        variables=tuple(replace(variable, values=variable.values[there]) for variable in role.variables),
        own=tuple(value for value, kept in zip(role.own, there, strict=True) if kept),
        rest=tuple(value for value, kept in zip(role.rest, there, strict=True) if kept),
    )


def _games_firing(codes: csc_array, group: np.ndarray) -> np.ndarray:
    """`(F,)` in how many games each feature fires."""
    groups, game = np.unique(group, return_inverse=True)
    column = np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))
    fired = np.unique(column * len(groups) + game[codes.indices])
    return np.bincount(fired // max(1, len(groups)), minlength=codes.shape[1])


def _rows(codes: csc_array, design: Design) -> csc_array:
    return codes if len(design.rows) == codes.shape[0] else codes.tocsr()[design.rows].tocsc()
