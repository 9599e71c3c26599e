"""Which features stand for the game: for the own card, the history, the legal moves, the equilibrium, winning.

1. The recorded games are played again, which gives the variables of every step ([`~spiral_trl.sae.game_variables`]).
2. Each feature is summarised at each step, at three positions ([`~spiral_trl.sae.step_codes`]). The one to look at is
   the decision token: in the prompt the card stands as a token of its own, which features of the first layer show
   trivially.
3. For each game, role, variable, position, layer and feature that fires in enough games: effect and p
   ([`~spiral_trl.sae.association`]), with the false-discovery rate of Benjamini and Hochberg controlled over all of
   them together, of both models where there are two.
4. The control: the same at the decision token with the variable dealt anew between the games of a role. What is
   discovered then is false, and the best effect then is what chance gives.
5. With the codes of a second model on the same documents: the difference of each effect, with an interval from
   resampling games.

Associations are marginal: a card also tells what an equilibrium does with it, and who will win.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..records import Episode
from .association import Design, direction, effects, purity, resampled_effects, score_test, shuffled
from .discoveries import benjamini_hochberg
from .game_variables import MIN_GAMES, RoleSteps, Variable, game_variables
from .step_codes import DECISION, POSITIONS, StepCodes
from .store import Store, check_same_tokens, write_json


if TYPE_CHECKING:
    from pandas import DataFrame
    from scipy.sparse import csc_array, csr_array


FALSE_DISCOVERIES = 0.05
# Share of the variance from which a feature is said to stand for a variable
STANDS_FOR = 0.25
# Both precision and recall from which a feature is said to tell a value exactly
EXACT = 0.99
# Features named for each variable, position and layer
_NAMED = 5
_REPLICATES = 400

Progress = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class GameFeatures:
    """What features stand for.

    Args:
        tests (`DataFrame`): One row for each test: `game`, `role`, `variable`, `position`, `layer`, `feature`, `games`
            (in which it fires), `effect`, `sign` (of the correlation with a number), `p`, `q`, and for categorical
            variables `value`, `precision`, `recall`. With a second model `effect_before`, and `effect`, `p` and `q` are
            its own.
        result (`dict`): What `game_features.json` holds; see [`associations`].
        roles (`list[RoleSteps]`): The steps and their variables.
    """

    tests: DataFrame
    result: dict[str, Any]
    roles: list[RoleSteps] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return self.result

    def features_for(
        self, variable: str, role: str, layer: int, game: str | None = None, positions: Sequence[str] | None = None
    ) -> list[int]:
        """Discovered features of a layer that stand for a variable, the largest effect at any of the positions first."""
        tests = self.tests
        found = tests[
            (tests.variable == variable)
            & (tests.role == role)
            & (tests.layer == layer)
            & (tests.q <= self.result["settings"]["false_discoveries"])
            & (tests.effect >= self.result["settings"]["stands_for"])
        ]
        if game is not None:
            found = found[found.game == game]
        if positions is not None:
            found = found[found.position.isin(positions)]
        ordered = found.sort_values(["effect", "feature"], ascending=[False, True])
        return [int(feature) for feature in ordered.feature.drop_duplicates()]

    def save(self, folder: str | Path) -> None:
        """Writes `game_features.json` and `game_features.parquet`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tests.to_parquet(folder / "game_features.parquet", index=False)
        write_json(folder / "game_features.json", self.result)


def associations(
    store: Store,
    episodes: Sequence[Episode],
    *,
    after: Store | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] = POSITIONS,
    false_discoveries: float = FALSE_DISCOVERIES,
    stands_for: float = STANDS_FOR,
    min_games: int = MIN_GAMES,
    permutations: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> GameFeatures:
    """Finds the features that stand for variables of the games.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): Codes of a model on the games.
        episodes (`Sequence[Episode]`): The games, in the order of the store's groups.
        after ([`~spiral_trl.sae.store.Store`], *optional*): Codes of the model after training, by the same dictionaries
            on the same documents. Then `store` is the model before.
        layers (`Sequence[int]`, *optional*): By default all of the store.
        positions (`Sequence[str]`, *optional*): Of `decision`, `prompt` and `reply`.
        false_discoveries (`float`, *optional*, defaults to `0.05`): Rate of false ones among discoveries.
        stands_for (`float`, *optional*, defaults to `0.25`): Share of its variance from which a discovered feature is
            said to stand for a variable.
        min_games (`int`, *optional*, defaults to `10`): Games in which a feature has to fire, or a level to be seen.
        permutations (`int`, *optional*, defaults to `10`): How often the control is dealt.
        seed (`int`, *optional*, defaults to `0`): Of the control and the intervals.
        progress (`Callable`, *optional*): Called with the share that is done and what is next.

    Returns:
        [`GameFeatures`]: Its `result` has `summary` (text), `settings`, `control`, `stands_for` (for each feature what it
        stands for best) and `variables`: for each game, role and variable `layers` at the decision token and
        `elsewhere` at the other positions, each with `best` effect, what `chance` gives, and named `features`.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If store and episodes do not belong together, or too few games are there.
    """
    unknown = sorted(set(positions) - set(POSITIONS))
    if unknown or not positions:
        raise UsageError(f"positions are of {', '.join(POSITIONS)}, not {', '.join(unknown) or 'none'}")
    if after is not None:
        check_same_tokens(store, after)
        _check_same_dictionaries(store, after)
    layers = store.layers if layers is None else sorted(layers)
    roles = game_variables(episodes, min_games=min_games)
    work = _Work(store, after, min_games, np.random.default_rng(seed), permutations)
    work.place(roles)
    parts, chances, total = [], {}, len(positions) * len(layers)
    for done, (position, layer) in enumerate((position, layer) for position in positions for layer in layers):
        if progress is not None:
            progress(done / total, f"layer {layer}, {position}")
        found, chance = work.layer(layer, position)
        parts.append(found)
        chances.update(chance)
    tests = _adjusted(parts, after is not None)
    control = work.control(false_discoveries)
    settings = {
        "layers": [int(layer) for layer in layers],
        "positions": list(positions),
        "false_discoveries": false_discoveries,
        "stands_for": stands_for,
        "min_games": min_games,
        "permutations": permutations,
        "seed": seed,
        "models": [store.about.get("model"), *([] if after is None else [after.about.get("model")])],
    }
    result: dict[str, Any] = {"summary": "", "settings": settings, "tests": len(tests), "control": control}
    result["discoveries"] = int((tests.q <= false_discoveries).sum())
    result["notes"] = sorted({f"{role.game}, {role.role}: {note}" for role in work.roles for note in role.notes})
    result["variables"] = work.describe(tests, settings, chances)
    result["stands_for"] = _best_of_each(tests, settings)
    result["summary"] = _summary(result, after is not None)
    if progress is not None:
        progress(1.0, "done")
    return GameFeatures(tests, result, work.roles)


def _check_same_dictionaries(store: Store, after: Store) -> None:
    for layer in store.layers:
        one, other = (about["layers"].get(str(layer), {}) for about in (store.about, after.about))
        if one.get("fingerprint") != other.get("fingerprint"):
            raise UsageError(
                f"the two stores are by different dictionaries at layer {layer} ({one.get('dictionary')} and "
                f"{other.get('dictionary')}): features can only be compared by number within one"
            )


@dataclass
class _Work:
    """The tests of one call."""

    store: Store
    after: Store | None
    min_games: int
    generator: np.random.Generator
    permutations: int
    roles: list[RoleSteps] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    shuffles: dict[tuple[int, str], list[np.ndarray]] = field(default_factory=dict)
    # For each shuffle the p of all tests at the decision token
    null: list[list[np.ndarray]] = field(default_factory=list)
    loaded: tuple[tuple[int, str], list[csr_array]] = ((-1, ""), [])

    def place(self, roles: Sequence[RoleSteps]) -> None:
        """Finds the steps of the roles in the store, and deals the control."""
        self.codes = [StepCodes.of(store) for store in (self.store, self.after) if store is not None]
        missing = len(self.codes[0])
        for role in roles:
            step = self.codes[0].find(role.group, role.turn, role.player)
            missing -= int((step >= 0).sum())
            kept = _kept(role, step >= 0)
            if len(np.unique(kept.group)) >= self.min_games and kept.variables:
                self.roles.append(kept)
                self.steps.append(step[step >= 0])
        if missing:
            raise UsageError(
                f"{missing} of {len(self.codes[0])} steps in {self.store.folder} are not in the episodes: the codes are "
                "of other games"
            )
        if not self.roles:
            raise UsageError(f"no role has steps in {self.min_games} games, which is what a test needs at least")
        self.null = [[] for _ in range(self.permutations)]
        for number, role in enumerate(self.roles):
            for variable in role.variables:
                self.shuffles[number, variable.name] = [
                    shuffled(variable.values, role.group, self.generator) for _ in range(self.permutations)
                ]

    def load(self, layer: int, position: str) -> list[csr_array]:
        """Codes of the models at all steps; the newest are kept."""
        if self.loaded[0] != (layer, position):
            self.loaded = ((layer, position), [codes.codes(layer, position) for codes in self.codes])
        return self.loaded[1]

    def layer(self, layer: int, position: str) -> tuple[list[DataFrame], dict[tuple, float]]:
        """Tests of all variables at one layer and position, and what chance gives."""
        import pandas as pd

        frames, chances = [], {}
        for number, role in enumerate(self.roles):
            mine = [model[self.steps[number]].tocsc() for model in self.load(layer, position)]
            firing = [_games_firing(codes, role.group) for codes in mine]
            features = np.flatnonzero(np.max(firing, axis=0) >= self.min_games)
            tested = [codes[:, features] for codes in mine]
            for variable in role.variables:
                design = Design.of(variable, role.group)
                if not design.varies or not len(features):
                    continue
                # Sparse columns are cut by rows once for all that is done with them
                rows = [_rows(codes, design) for codes in tested]
                last = rows[-1]
                frame = pd.DataFrame(
                    {
                        "game": role.game,
                        "role": role.role,
                        "variable": variable.name,
                        "position": position,
                        "layer": layer,
                        "feature": features,
                        "games": firing[-1][features],
                        "effect": effects(design, last),
                        "sign": direction(design, last).astype(np.int8),
                        "p": score_test(design, last),
                    }
                )
                if variable.categorical:
                    level, precision, recall = purity(design, last)
                    names = np.unique(variable.values[design.rows]).astype(int)
                    frame["value"] = [variable.levels[names[k]] for k in level]
                    frame["precision"], frame["recall"] = precision, recall
                else:
                    frame["value"], frame["precision"], frame["recall"] = None, np.nan, np.nan
                if self.after is not None:
                    frame["effect_before"] = effects(design, rows[0])
                    frame["p_before"] = score_test(design, rows[0])
                frames.append(frame)
                if position == DECISION:
                    key = role.game, role.role, variable.name, layer
                    chances[key] = self._chance(number, variable, tested[-1])
        return frames, chances

    def _chance(self, number: int, variable: Variable, codes: csc_array) -> float:
        """The mean best effect where the variable is dealt anew."""
        best = []
        for values, null in zip(self.shuffles[number, variable.name], self.null, strict=True):
            design = Design.of(variable, self.roles[number].group, values)
            rows = _rows(codes, design)
            best.append(effects(design, rows).max(initial=0.0))
            null.append(score_test(design, rows))
        return float(np.mean(best)) if best else 0.0

    def control(self, rate: float) -> dict[str, Any]:
        """Discoveries at the decision token where variables are dealt anew, by the same rule."""
        found = [int((benjamini_hochberg(np.concatenate(p)) <= rate).sum()) if p else 0 for p in self.null]
        tests = sum(len(p) for p in self.null[0]) if self.null else 0
        return {"position": DECISION, "tests": tests, "discoveries": found}

    def describe(
        self, tests: DataFrame, settings: dict[str, Any], chances: dict[tuple, float]
    ) -> list[dict[str, Any]]:
        """Every variable of every role, along the layers."""
        keys = [(role, variable) for role in self.roles for variable in role.variables]
        by_position: list[dict[str, list]] = [{position: [] for position in settings["positions"]} for _ in keys]
        for position in settings["positions"]:
            for layer in settings["layers"]:
                here = tests[(tests.position == position) & (tests.layer == layer)]
                for (role, variable), told in zip(keys, by_position, strict=True):
                    mine = here[(here.game == role.game) & (here.role == role.role) & (here.variable == variable.name)]
                    chance = (
                        chances.get((role.game, role.role, variable.name, layer)) if position == DECISION else None
                    )
                    told[position].append(self._describe(role, variable, mine, position, layer, settings, chance))
        main = DECISION if DECISION in settings["positions"] else settings["positions"][0]
        return [
            {
                "name": variable.name,
                "also": list(variable.also),
                "game": role.game,
                "role": role.role,
                "kind": "categorical" if variable.categorical else "number",
                "values": list(variable.levels),
                "steps": int((~np.isnan(variable.values)).sum()),
                "games": len(np.unique(role.group[~np.isnan(variable.values)])),
                "position": main,
                "arises": _arises(told[main]),
                "layers": told.pop(main),
                "elsewhere": told,
            }
            for (role, variable), told in zip(keys, by_position, strict=True)
        ]

    def _describe(
        self,
        role: RoleSteps,
        variable: Variable,
        here: DataFrame,
        position: str,
        layer: int,
        settings: dict[str, Any],
        chance: float | None,
    ) -> dict[str, Any]:
        """A variable of a role at one layer and position, from its tests."""
        found = here[here.q <= settings["false_discoveries"]]
        paired = self.after is not None
        rank = found[["effect", "effect_before"]].max(axis=1) if paired else found.effect
        named = found.loc[rank.sort_values(ascending=False, kind="stable").index[:_NAMED]]
        told: dict[str, Any] = {
            "layer": layer,
            "best": _rounded(here.effect.max()) if len(here) else 0.0,
            "chance": _rounded(chance),
            "tested": len(here),
            "discoveries": len(found),
            "stand_for": int((found.effect >= settings["stands_for"]).sum()),
            "exact": int((np.minimum(found.precision, found.recall) >= EXACT).sum()),
        }
        if paired:
            told["before"] = _rounded(here.effect_before.max()) if len(here) else 0.0
            told["after"] = told["best"]
        told["features"] = [_feature(row, paired) for row in named.itertuples()]
        if paired and len(named):
            changes = self._changes(role, variable, position, layer, named.feature.to_numpy(), settings["seed"])
            for feature, change in zip(told["features"], changes, strict=True):
                feature["change"] = change
        return told

    def _changes(
        self, role: RoleSteps, variable: Variable, position: str, layer: int, features: np.ndarray, seed: int
    ) -> list[dict[str, float]]:
        """The effect after less the effect before, with an interval from resampling games."""
        number = next(i for i, other in enumerate(self.roles) if other is role)
        design = Design.of(variable, role.group)
        generator = np.random.default_rng((seed, layer, POSITIONS.index(position)))
        games = design.num_games
        weights = generator.multinomial(games, np.full(games, 1 / games), size=_REPLICATES).astype(np.float64)
        estimates, drawn = [], []
        for codes in self.load(layer, position):
            dense = codes[self.steps[number][design.rows]].tocsc()[:, features]
            estimates.append(effects(design, dense))
            drawn.append(resampled_effects(design, dense.toarray(), weights))
        low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975], axis=0)
        return [
            {"estimate": _rounded(estimate), "low": _rounded(below), "high": _rounded(above)}
            for estimate, below, above in zip(estimates[1] - estimates[0], low, high, strict=True)
        ]


def _kept(role: RoleSteps, there: np.ndarray) -> RoleSteps:
    """A role with those of its steps alone that the store has."""
    if there.all():
        return role
    variables = tuple(replace(variable, values=variable.values[there]) for variable in role.variables)
    return replace(
        role,
        group=role.group[there],
        turn=role.turn[there],
        step=role.step[there],
        variables=variables,
        own=tuple(value for value, kept in zip(role.own, there, strict=True) if kept),
        rest=tuple(value for value, kept in zip(role.rest, there, strict=True) if kept),
    )


def _games_firing(codes: csc_array, group: np.ndarray) -> np.ndarray:
    """`(F,)` in how many games each feature fires."""
    _, game = np.unique(group, return_inverse=True)
    column = np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))
    fired = np.unique(column * (int(game.max(initial=0)) + 1) + game[codes.indices])
    return np.bincount(fired // (int(game.max(initial=0)) + 1), minlength=codes.shape[1])


def _rows(codes: csc_array, design: Design) -> csc_array:
    return codes if len(design.rows) == codes.shape[0] else codes.tocsr()[design.rows].tocsc()


def _adjusted(parts: Sequence[Sequence[DataFrame]], paired: bool) -> DataFrame:
    """All tests in one table, with `q` over all of them, of both models."""
    import pandas as pd

    frames = [frame for part in parts for frame in part]
    if not frames:
        raise UsageError("no feature fires in enough games for a test")
    tests = pd.concat(frames, ignore_index=True)
    if paired:
        q = benjamini_hochberg(np.concatenate([tests.p, tests.p_before]))
        tests["q"], tests["q_before"] = q[: len(tests)], q[len(tests) :]
    else:
        tests["q"] = benjamini_hochberg(tests.p.to_numpy())
    return tests


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")


def _feature(row: Any, paired: bool) -> dict[str, Any]:
    told = {
        "l": int(row.layer),
        "f": int(row.feature),
        "effect": _rounded(row.effect),
        "p": _rounded(row.p),
        "q": _rounded(row.q),
        "games": int(row.games),
        "before": _rounded(row.effect_before) if paired else None,
        "after": _rounded(row.effect) if paired else None,
    }
    if row.value is not None:
        told |= {"value": row.value, "precision": _rounded(row.precision), "recall": _rounded(row.recall)}
    else:
        told["sign"] = int(row.sign)
    return told


def _arises(layers: Sequence[dict[str, Any]]) -> int | None:
    """The first layer with half of what the best one has above chance, among layers with a discovery."""
    above = [(layer["best"] or 0.0) - (layer["chance"] or 0.0) if layer["discoveries"] else 0.0 for layer in layers]
    best = max(above, default=0.0)
    if best <= 0:
        return None
    return next(layer["layer"] for layer, effect in zip(layers, above, strict=True) if effect >= best / 2)


def _best_of_each(tests: DataFrame, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What each feature stands for best."""
    found = tests[(tests.q <= settings["false_discoveries"]) & (tests.effect >= settings["stands_for"])]
    found = found.sort_values(["effect"], ascending=False, kind="stable").drop_duplicates(["layer", "feature"])
    return [
        {
            "l": int(row.layer),
            "f": int(row.feature),
            "name": row.variable,
            "game": row.game,
            "role": row.role,
            "position": row.position,
            "effect": _rounded(row.effect),
            **({} if row.value is None else {"value": row.value}),
        }
        for row in found.sort_values(["layer", "feature"]).itertuples()
    ]


def _summary(result: dict[str, Any], paired: bool) -> str:
    """What was found, in words."""
    main = result["variables"][0]["position"] if result["variables"] else DECISION
    where = "At the token before the reply" if main == DECISION else f"Over the tokens of the {main}"
    found, absent = [], []
    for variable in result["variables"]:
        layers = variable["layers"]
        best = max(layers, key=lambda layer: layer["best"] or 0.0)
        whom = f"{variable['name']} of {variable['role']}"
        if len({other["game"] for other in result["variables"]}) > 1:
            whom += f" in {variable['game']}"
        if variable["arises"] is None or best["best"] < result["settings"]["stands_for"]:
            absent.append(whom)
            continue
        change = f", {best['before']:.0%} before training" if paired else ""
        found.append(
            f"{whom} ({best['best']:.0%} of the variance of a feature of layer {best['layer']} explained{change}; arises "
            f"at layer {variable['arises']})"
        )
    lines = [
        f"{where} features stand for: {'; '.join(found)}." if found else f"{where} no feature stands for a variable."
    ]
    if absent:
        lines.append(f"No feature stands for: {'; '.join(absent)}.")
    control = result["control"]
    rate = result["settings"]["false_discoveries"]
    lines.append(
        f"{result['discoveries']:,} of {result['tests']:,} tests are discoveries at a false-discovery rate of {rate:g}"
        + (
            f"; with the variables dealt anew between games, {np.mean(control['discoveries']):.1f} of "
            f"{control['tests']:,} are."
            if control["discoveries"]
            else "."
        )
    )
    return " ".join(lines)
