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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..records import Episode
from .game_tests import Columns, GameTests, Subject, adjusted, chosen
from .game_variables import MIN_GAMES, RoleSteps, game_variables
from .step_codes import DECISION, POSITIONS, PROMPT, REPLY
from .store import Store, check_same_tokens, write_json


FALSE_DISCOVERIES = 0.05
# Share of the variance from which a feature is said to stand for a variable
STANDS_FOR = 0.25
# Precision and recall from which a feature is said to tell a value exactly
EXACT = 0.99
# Features named for each variable, position and layer
_NAMED = 5

# Called with how much is done, of how much, and what is next
Progress = Callable[[int, int, str], object]


@dataclass(frozen=True, eq=False)
class GameFeatures:
    """What features stand for.

    Args:
        tests (`dict[str, np.ndarray]`): Columns with a row for each test: `subject` (number of the variable in
            `result["variables"]`), `position` (number of it among `decision`, `prompt` and `reply`), `layer`, `feature`,
            `games` (in which it fires), `effect`, `sign` (of the correlation with a number), `p`, `q`, and for
            categorical variables `level`, `precision` and `recall`. With a second model, these are its own, and
            `effect_before`, `p_before` and `q_before` those of the first.
        result (`dict`): What `game_features.json` holds; see [`associations`].
        roles (`list[RoleSteps]`): The steps and their variables.
    """

    tests: Columns
    result: dict[str, Any]
    roles: list[RoleSteps] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return self.result

    def features_for(
        self, variable: str, role: str, layer: int, game: str | None = None, positions: Sequence[str] | None = None
    ) -> list[int]:
        """Discovered features of a layer that stand for a variable, the largest effect at any of the positions first."""
        tests, settings = self.tests, self.result["settings"]
        subjects = [
            number
            for number, told in enumerate(self.result["variables"])
            if told["name"] == variable and told["role"] == role and game in (None, told["game"])
        ]
        there = np.isin(tests["subject"], subjects) & (tests["layer"] == layer)
        there &= (tests["q"] <= settings["false_discoveries"]) & (tests["effect"] >= settings["stands_for"])
        if positions is not None:
            there &= np.isin(tests["position"], [POSITIONS.index(position) for position in positions])
        found = np.flatnonzero(there)
        ordered = found[np.lexsort((tests["feature"][found], -tests["effect"][found]))]
        return list(dict.fromkeys(tests["feature"][ordered].tolist()))

    def save(self, folder: str | Path) -> None:
        """Writes `game_features.json` and `game_features.parquet`."""
        import pyarrow as pa
        import pyarrow.parquet

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        told = self.result["variables"]
        subject = self.tests["subject"]
        columns: dict[str, Any] = {
            column: pa.DictionaryArray.from_arrays(pa.array(subject), pa.array([one[name] for one in told]))
            for column, name in (("game", "game"), ("role", "role"), ("variable", "name"))
        }
        columns["position"] = pa.DictionaryArray.from_arrays(pa.array(self.tests["position"]), pa.array(POSITIONS))
        for name, column in self.tests.items():
            if name == "level":
                values = [value for one in told for value in one["values"]]
                starts = np.cumsum([0, *(len(one["values"]) for one in told)])
                place = pa.array(starts[subject] + column, mask=column < 0)
                columns["value"] = pa.DictionaryArray.from_arrays(place, pa.array(values, pa.string()))
            elif name not in ("subject", "position"):
                columns[name] = pa.array(column, from_pandas=True)
        pyarrow.parquet.write_table(pa.table(columns), folder / "game_features.parquet")
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
        progress (`Callable`, *optional*): Called with how much is done, of how much, and what is next.

    Returns:
        [`GameFeatures`]: Its `result` has `summary` (text), `settings`, `control`, `stands_for` (for each feature what it
        stands for best) and `variables`: for each game, role and variable `layers` at the decision token and
        `elsewhere` at the other positions, each with the `best` effect, what `chance` gives, and named `features`.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If store and episodes do not belong together, or too few games are there.
    """
    unknown = sorted(set(positions) - set(POSITIONS))
    if unknown or not positions:
        raise UsageError(f"positions are of {', '.join(POSITIONS)}, not {', '.join(unknown) or 'none'}")
    if after is not None:
        check_same_tokens(store, after)
        _check_same_dictionaries(store, after)
    layers = list(store.layers) if layers is None else sorted(layers)
    for layer in layers:
        store.num_features(layer)
    roles = game_variables(episodes, min_games=min_games)
    work = GameTests([store] if after is None else [store, after], roles, min_games, permutations, seed)
    parts: list[Columns] = []
    chances: dict[tuple[int, int], float] = {}
    planned = [(position, layer) for position in positions for layer in layers]
    for done, (position, layer) in enumerate(planned):
        if progress is not None:
            progress(done, len(planned), f"layer {layer}, {position}")
        found, chance = work.layer(layer, position)
        parts += found
        chances |= {(subject, layer): value for subject, value in chance.items()}
    tests = adjusted(parts)
    settings = {
        "layers": layers,
        "positions": list(positions),
        "false_discoveries": false_discoveries,
        "stands_for": stands_for,
        "min_games": min_games,
        "permutations": permutations,
        "seed": seed,
        "models": [store.about.get("model"), *([] if after is None else [after.about.get("model")])],
    }
    variables = _Described(work, tests, settings, chances, after is not None).variables()
    result: dict[str, Any] = {
        "summary": "",
        "settings": settings,
        "tests": len(tests["q"]),
        "discoveries": int((tests["q"] <= false_discoveries).sum()),
        "control": work.control(false_discoveries),
        "notes": sorted({f"{role.game}, {role.role}: {note}" for role in work.roles for note in role.notes}),
        "variables": variables,
        "stands_for": _best_of_each(tests, variables, settings),
    }
    result["summary"] = _summary(result, after is not None)
    if progress is not None:
        progress(len(planned), len(planned), "done")
    return GameFeatures(tests, result, work.roles)


def _check_same_dictionaries(store: Store, after: Store) -> None:
    for layer in store.layers:
        one, other = (about["layers"].get(str(layer), {}) for about in (store.about, after.about))
        if one.get("fingerprint") != other.get("fingerprint"):
            raise UsageError(
                f"the two stores are by different dictionaries at layer {layer} ({one.get('dictionary')} and "
                f"{other.get('dictionary')}): features can only be compared by number within one"
            )


class _Described:
    """Puts tests into words and JSON."""

    def __init__(
        self,
        work: GameTests,
        tests: Columns,
        settings: dict[str, Any],
        chances: dict[tuple[int, int], float],
        paired: bool,
    ):
        self.work = work
        self.tests = tests
        self.settings = settings
        self.chances = chances
        self.paired = paired

    def variables(self) -> list[dict[str, Any]]:
        """Every variable of every role, along the layers."""
        positions, subjects = self.settings["positions"], self.work.subjects
        told: list[dict[str, list]] = [{position: [] for position in positions} for _ in subjects]
        for position in positions:
            for layer in self.settings["layers"]:
                here = np.flatnonzero(
                    (self.tests["position"] == POSITIONS.index(position)) & (self.tests["layer"] == layer)
                )
                for number in range(len(subjects)):
                    mine = here[self.tests["subject"][here] == number]
                    told[number][position].append(self._layer(number, position, layer, chosen(self.tests, mine)))
        main = DECISION if DECISION in positions else positions[0]
        return [self._variable(subject, main, one) for subject, one in zip(subjects, told, strict=True)]

    def _variable(self, subject: Subject, main: str, told: dict[str, list]) -> dict[str, Any]:
        role, variable = subject.role, subject.variable
        there = ~np.isnan(variable.values)
        return {
            "name": variable.name,
            "also": list(variable.also),
            "game": role.game,
            "role": role.role,
            "kind": "categorical" if variable.categorical else "number",
            "values": list(variable.levels),
            "steps": int(there.sum()),
            "games": len(np.unique(role.group[there])),
            "position": main,
            "arises": _arises(told[main]),
            "layers": told[main],
            "elsewhere": {position: layers for position, layers in told.items() if position != main},
        }

    def _layer(self, number: int, position: str, layer: int, here: Columns) -> dict[str, Any]:
        """A variable at one layer and position, from its tests."""
        subject, rate = self.work.subjects[number], self.settings["false_discoveries"]
        found = chosen(here, here["q"] <= rate)
        rank = np.maximum(found["effect"], found["effect_before"]) if self.paired else found["effect"]
        named = chosen(found, np.argsort(-rank, kind="stable")[:_NAMED])
        told: dict[str, Any] = {
            "layer": layer,
            "best": rounded(here["effect"].max(initial=0.0)),
            "chance": rounded(self.chances.get((number, layer), 0.0)) if position == DECISION else None,
            "tested": len(here["q"]),
            "discoveries": len(found["q"]),
            "stand_for": int((found["effect"] >= self.settings["stands_for"]).sum()),
            "exact": int((np.minimum(found["precision"], found["recall"]) >= EXACT).sum()),
        }
        if self.paired:
            told |= {"before": rounded(here["effect_before"].max(initial=0.0)), "after": told["best"]}
        told["features"] = [self._feature(subject, named, row) for row in range(len(named["q"]))]
        if self.paired and told["features"]:
            changes = self.work.changes(subject, position, layer, named["feature"])
            for feature, change in zip(told["features"], changes.T.tolist(), strict=True):
                feature["change"] = dict(zip(("estimate", "low", "high"), map(rounded, change), strict=True))
        return told

    def _feature(self, subject: Subject, named: Columns, row: int) -> dict[str, Any]:
        one = {name: column[row].item() for name, column in named.items()}
        told = {
            "l": one["layer"],
            "f": one["feature"],
            "effect": rounded(one["effect"]),
            "p": rounded(one["p"]),
            "q": rounded(one["q"]),
            "games": one["games"],
            "before": rounded(one["effect_before"]) if self.paired else None,
            "after": rounded(one["effect"]) if self.paired else None,
        }
        if not subject.variable.categorical:
            return told | {"sign": one["sign"]}
        value = subject.variable.levels[one["level"]]
        return told | {
            "value": value,
            "precision": rounded(one["precision"]),
            "recall": rounded(one["recall"]),
        }


def rounded(value: float) -> float:
    """Four digits of a number."""
    return float(f"{value:.4g}") + 0.0


def _arises(layers: Sequence[dict[str, Any]]) -> int | None:
    """The first layer with half of what the best one has above chance, among layers with a discovery."""
    above = [layer["best"] - (layer["chance"] or 0.0) if layer["discoveries"] else 0.0 for layer in layers]
    best = max(above, default=0.0)
    if best <= 0:
        return None
    return next(layer["layer"] for layer, effect in zip(layers, above, strict=True) if effect >= best / 2)


def _best_of_each(
    tests: Columns, variables: Sequence[dict[str, Any]], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """What each feature stands for best."""
    found = chosen(tests, (tests["q"] <= settings["false_discoveries"]) & (tests["effect"] >= settings["stands_for"]))
    # By layer and feature, the largest effect first
    found = chosen(found, np.lexsort((found["subject"], -found["effect"], found["feature"], found["layer"])))
    new = np.flatnonzero(
        (np.diff(found["layer"], prepend=-1) != 0) | (np.diff(found["feature"].astype(np.int64), prepend=-1) != 0)
    )
    told = []
    for row in new.tolist():
        variable, level = variables[found["subject"][row]], int(found["level"][row])
        told.append(
            {
                "l": int(found["layer"][row]),
                "f": int(found["feature"][row]),
                "name": variable["name"],
                "game": variable["game"],
                "role": variable["role"],
                "position": POSITIONS[found["position"][row]],
                "effect": rounded(found["effect"][row]),
                **({"value": variable["values"][level]} if level >= 0 else {}),
            }
        )
    return told


def _summary(result: dict[str, Any], paired: bool) -> str:
    """What was found, in words."""
    lines, rest = [], list(result["variables"])
    games = len({variable["game"] for variable in rest})
    # What the prompt shows as a token of its own comes last
    order = [position for position in (DECISION, REPLY, PROMPT) if position in result["settings"]["positions"]]
    for position in order:
        found: dict[str, list[str]] = {}
        left = []
        for variable in rest:
            layers = variable["layers"] if variable["position"] == position else variable["elsewhere"][position]
            best = max(layers, key=lambda layer: (layer["stand_for"] > 0, layer["best"]))
            if not best["stand_for"]:
                left.append(variable)
                continue
            seat = f"{variable['role']} in {variable['game']}" if games > 1 else variable["role"]
            # Before training it may have stood elsewhere along the layers
            change = f", {max(layer['before'] for layer in layers):.0%} before training" if paired else ""
            found.setdefault(variable["name"], []).append(
                f"{seat} {best['best']:.0%} at layer {best['layer']}{change}"
            )
        if found:
            where = "At the token before the reply" if position == DECISION else f"Over the tokens of the {position}"
            told = "; ".join(f"{name} ({', '.join(seats)})" for name, seats in found.items())
            lines.append(f"{where}, features stand for (share of their variance explained): {told}.")
        rest = left
    if rest:
        named = ", ".join(f"{one['name']} ({one['role']})" for one in rest)
        lines.append(f"No feature stands for: {named}.")
    rate, control = result["settings"]["false_discoveries"], result["control"]
    lines.append(
        f"{result['discoveries']:,} of {result['tests']:,} tests are discoveries at a false-discovery rate of {rate:g}."
    )
    if control["discoveries"]:
        lines.append(
            f"With variables dealt anew between games, {np.mean(control['discoveries']):.1f} of {control['tests']:,} are."
        )
    return " ".join(lines)
