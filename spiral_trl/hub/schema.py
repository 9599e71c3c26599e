"""What `metrics.json` must look like for a page or a card to be made from it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any


SCHEMA = 1
METHODS = ("exact", "sampled", "lower bound")
STAGES = ("start", "final", "plain")
# All fields; `rules` (two sentences) and `game_value` (by role) say what is not known of the game here, and `by_game`
# holds those of one game (`_check_figures`) for each game of a run on several. `pool` is what
# `players.pool.PoolState.report` answers.
_KNOWN = (
    *("schema", "game", "finished", "model", "recipe", "command", "exploitability", "illegal_move_rate", "games"),
    *("turns", "tokens", "seconds", "seed", "versions", "machine", "results", "strategy", "equilibrium_alpha"),
    *("curves", "training", "games_trained", "rules", "game_value", "by_game", "pool"),
)


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A plain dictionary of `metrics`, once every field that is read from it has the right type.

    Raises:
        ValueError: With the field, what was given and what is allowed.
    """
    if not isinstance(metrics, Mapping):
        raise ValueError(f"metrics is a {type(metrics).__name__}; it must be the dictionary of a run's metrics.json")
    for name in ("schema", "game", "model"):
        if metrics.get(name) is None:
            near = difflib.get_close_matches(name, [str(key) for key in metrics if key not in _KNOWN], n=1)
            hint = f"; did you mean it by {near[0]!r}?" if near else ""
            raise ValueError(f"metrics has no {name!r}{hint}")
    if metrics["schema"] != SCHEMA:
        raise ValueError(f"metrics['schema'] is {metrics['schema']!r}; this version reads schema {SCHEMA}")
    _check(metrics, "game", str)
    model = _check(metrics, "model", dict)
    if not isinstance(model.get("name"), str):
        raise ValueError(f"metrics['model']['name'] is {model.get('name')!r}; it must be a text")
    for name, kind in (
        ("seconds", dict), ("versions", dict), ("machine", dict), ("training", dict), ("game_value", dict),
        ("games_trained", list), ("recipe", str), ("command", str), ("rules", str), ("by_game", dict),
        ("pool", dict),
    ):  # fmt: skip
        _check(metrics, name, kind)
    for name in ("games", "turns", "tokens"):
        _number(metrics, name, "metrics")
    for name, value in (metrics.get("seconds") or {}).items():
        _number({name: value}, name, "metrics['seconds']")
    _check_figures(metrics, "metrics")
    _check_pool(metrics.get("pool"))
    for game, figures in (metrics.get("by_game") or {}).items():
        where = f"metrics['by_game'][{game!r:.80}]"
        if not isinstance(figures, Mapping):
            raise ValueError(f"{where} is {figures!r:.80}; it must be a dictionary")
        _check_figures(figures, where)
    return dict(metrics)


def _check_figures(figures: Mapping[str, Any], place: str) -> None:
    """The fields that hold figures of one game."""
    for name, kind in (
        ("exploitability", dict), ("illegal_move_rate", dict), ("curves", dict), ("results", list), ("strategy", list),
    ):  # fmt: skip
        _check(figures, name, kind, place)
    _number(figures, "equilibrium_alpha", place)
    exploitability = figures.get("exploitability") or {}
    for name in (*STAGES, "final_given_legal", "plain_given_legal", "unexplored_mass", "samples", "floor"):
        _number(exploitability, name, f"{place}['exploitability']")
    method = exploitability.get("method")
    if method is not None and str(method).replace("_", " ") not in METHODS:
        near = difflib.get_close_matches(str(method), METHODS, n=1, cutoff=0)
        raise ValueError(
            f"{place}['exploitability']['method'] is {method!r}; it must be one of {', '.join(METHODS)} "
            f"(nearest: {near[0]})"
        )
    for name in STAGES:
        _number(figures.get("illegal_move_rate") or {}, name, f"{place}['illegal_move_rate']")
    for i, row in enumerate(figures.get("results") or []):
        where = f"{place}['results'][{i}]"
        if not isinstance(row, Mapping) or not isinstance(row.get("opponent"), str):
            raise ValueError(f"{where} is {row!r:.80}; it must be a dictionary with an 'opponent'")
        for name in ("win_rate", "mean_return"):
            if row.get(name) is not None:
                _numbers(row[name], 3, f"{where}[{name!r}]", "value, lower and upper end of its interval")
        for name in ("seat", "games", "draw_rate"):
            _number(row, name, where)
    for i, row in enumerate(figures.get("strategy") or []):
        where = f"{place}['strategy'][{i}]"
        if not isinstance(row, Mapping) or not row.get("actions"):
            raise ValueError(f"{where} is {row!r:.80}; it must be a dictionary with 'actions'")
        size = len(row["actions"])
        for name in STAGES:
            if row.get(name) is not None:
                _numbers(row[name], size, f"{where}[{name!r}]", "one probability for each action")
        if row.get("equilibrium") is not None:
            bands = row["equilibrium"]
            if not isinstance(bands, Sequence) or len(bands) != size:
                raise ValueError(f"{where}['equilibrium'] is {bands!r:.80}; it must be one range for each action")
            for band in bands:
                _numbers(band, 2, f"{where}['equilibrium']", "lower and upper end of a range")
    for run, points in (figures.get("curves") or {}).items():
        if points is not None and not isinstance(points, list):
            raise ValueError(f"{place}['curves'][{run!r}] is {points!r:.80}; it must be a list of points")
        for i, point in enumerate(points or []):
            where = f"{place}['curves'][{run!r}][{i}]"
            if not isinstance(point, Mapping):
                raise ValueError(f"{where} is {point!r:.80}; it must be a dictionary")
            for name in ("step", "games", "exploitability", "illegal_move_rate"):
                _number(point, name, where)
            for role, value in (_check(point, "return", dict, where) or {}).items():
                _number({role: value}, role, f"{where}['return']")


def _check_pool(pool: Mapping[str, Any] | None) -> None:
    if pool is None:
        return
    where = "metrics['pool']"
    members = _check(pool, "members", list, where) or []
    for i, member in enumerate(members):
        if not isinstance(member, Mapping):
            raise ValueError(f"{where}['members'][{i}] is {member!r:.80}; it must be a dictionary")
        for name in ("step", "rating"):
            _number(member, name, f"{where}['members'][{i}]")
    _number(pool, "rating", where)
    for name in ("games", "score"):
        rows = _check(pool, name, list, where)
        if rows is None or len(rows) != len(members) + 1:
            raise ValueError(f"{where}[{name!r}] must have a row for each member and one for the policy")
        for i, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != len(rows):
                raise ValueError(f"{where}[{name!r}][{i}] is {row!r:.80}; it must have {len(rows)} entries")
            for j, value in enumerate(row):
                _number({str(j): value}, str(j), f"{where}[{name!r}][{i}]")


def _check(holder: Mapping[str, Any], name: str, kind: type, where: str = "metrics") -> Any:
    value = holder.get(name)
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{where}[{name!r}] is {value!r:.80}; it must be a {kind.__name__}")
    return value


def _number(holder: Mapping[str, Any], name: str, where: str) -> None:
    value = holder.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{where}[{name!r}] is {value!r:.80}; it must be a number or null")


def _numbers(values: Any, size: int, where: str, meaning: str) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != size:
        raise ValueError(f"{where} is {values!r:.80}; it must be {size} numbers: {meaning}")
    for value in values:
        _number({"value": value}, "value", where)
