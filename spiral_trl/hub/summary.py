"""What `metrics.json` says, checked, redacted and put into words: shared by the report page and the model card.

[`summarise`] reads the dictionary once. Everything that is shown comes from there; a figure that was not measured is
shown as such, and an exploitability never stands without its method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .formatting import count, duration, number, percent, probability, visible
from .redact import local_names, redact_tree
from .rules import rules_of
from .schema import STAGES, check_metrics


MAX_INFOSETS = 24  # more would fit neither a picture nor a reader


@dataclass(frozen=True)
class Tile:
    """One key figure: what it is, its value, and how it was got."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class StrategyRow:
    """One action of one information set. Probabilities are `None` where they were not measured.

    Args:
        label (`str`): The information set in words.
        action (`str`): The action.
        player (`int`): Seat that decides here.
        index (`int`): Place of the action within its information set.
        actions (`int`): How many actions the information set has.
        probability (`dict`): Probability of the action by stage: `start`, `final`, `plain`.
        illegal (`dict`): Probability of no legal action by stage.
        band (`tuple[float, float]`, *optional*): Range of the probability over the known equilibria.
    """

    label: str
    action: str
    player: int
    index: int
    actions: int
    probability: dict[str, float | None]
    illegal: dict[str, float | None]
    band: tuple[float, float] | None

    @property
    def band_text(self) -> str:
        if self.band is None:
            return "not known"
        low, high = (probability(end) for end in self.band)
        return low if low == high else f"{low}\N{EN DASH}{high}"

    @property
    def outside(self) -> float | None:
        """How far the final probability lies outside the band: 0 inside it."""
        final = self.probability["final"]
        if final is None or self.band is None:
            return None
        return max(self.band[0] - final, final - self.band[1], 0.0)


@dataclass(frozen=True)
class GameRow:
    """The main figures of one game of several, as shown.

    Args:
        game (`str`): The game.
        method (`str`): How its exploitability was measured.
        exploitability, illegal (`dict[str, str]`): By stage: `start`, `final`, `plain`.
        results (`list[dict]`): Against fixed opponents, by seat.
    """

    game: str
    method: str
    exploitability: dict[str, str]
    illegal: dict[str, str]
    results: list[dict[str, Any]]


@dataclass(frozen=True)
class PoolRow:
    """A snapshot of the pool, or the policy (the last row), as shown.

    Args:
        name (`str`): What it is.
        rating (`str`): Elo points above the initial policy.
        cells (`list[tuple[str, str]]`): Mean score against each member and the policy, and the games it is from; empty
            where they never met.
    """

    name: str
    rating: str
    cells: list[tuple[str, str]]


@dataclass(frozen=True)
class Summary:
    """A run in words and figures; see [`summarise`]."""

    metrics: dict[str, Any]
    game: str
    model: str
    embedded: str
    method: str
    method_sentence: str
    rules: str
    tiles: list[Tile]
    facts: list[tuple[str, str]]
    results: list[dict[str, Any]]
    strategy: list[StrategyRow]
    infosets: int
    worst_illegal: float | None
    caveats: list[str] = field(default_factory=list)
    games: list[GameRow] = field(default_factory=list)  # of a run on several
    pool: list[PoolRow] = field(default_factory=list)

    @property
    def game_id(self) -> str:
        """The game's name without source and parameters."""
        return self.game.split("(")[0].split(":")[-1]

    def curve(self, run: str, key: str, role: str | None = None) -> tuple[list[float], list[float]]:
        """x (games, or steps where games are not counted) and y of one curve, unmeasured points left out."""
        xs, ys = [], []
        points = (self.metrics.get("curves") or {}).get(run) or []
        axis = self.curve_axis
        for point in points:
            value = point.get(key)
            if role is not None:
                value = (value or {}).get(role)
            if value is not None and point.get(axis) is not None:
                xs.append(float(point[axis]))
                ys.append(float(value))
        return xs, ys

    @property
    def has_plain_curve(self) -> bool:
        return bool((self.metrics.get("curves") or {}).get("plain"))

    @property
    def has_plain_strategy(self) -> bool:
        return any(row.probability["plain"] is not None for row in self.strategy)

    @property
    def has_bands(self) -> bool:
        return any(row.band is not None for row in self.strategy)

    @property
    def strategy_shown(self) -> int:
        """How many of `infosets` information sets `strategy` has."""
        return min(self.infosets, MAX_INFOSETS)

    @property
    def finished(self) -> bool:
        return self.metrics.get("finished") is not False

    @property
    def alpha(self) -> float | None:
        """Parameter of the equilibrium that is nearest to the final strategy, where equilibria are one family."""
        return self.metrics.get("equilibrium_alpha")

    @property
    def training_yaml(self) -> str:
        """The training settings as YAML; empty where none were recorded."""
        import yaml

        training = self.metrics.get("training")
        return yaml.safe_dump(training, sort_keys=False, allow_unicode=True) if training else ""

    @property
    def curve_axis(self) -> str:
        points = [p for run in (self.metrics.get("curves") or {}).values() for p in run or []]
        return "games" if any(point.get("games") is not None for point in points) else "step"

    @property
    def roles(self) -> list[str]:
        """Roles whose self-play return was followed over training, in order."""
        points = (self.metrics.get("curves") or {}).get("self_play") or []
        roles = dict.fromkeys(role for point in points for role in point.get("return") or {})
        return [role for role in roles if self.curve("self_play", "return", role)[1]]


def summarise(metrics: Mapping[str, Any]) -> Summary:
    """Checks and redacts `metrics` and puts them into words.

    Args:
        metrics (`Mapping[str, Any]`): What a training run writes as `metrics.json`. Only `schema`, `game` and
            `model.name` must be there; what is missing or `None` is shown as not measured, or left out.

    Raises:
        ValueError: A required field is missing, a field has the wrong type, or the schema is another one.
    """
    checked = check_metrics(metrics)
    machine = checked.get("machine") or {}
    named = [str(machine[key]) for key in ("host", "hostname", "node", "user") if machine.get(key)]
    cleaned: dict[str, Any] = _clean(redact_tree(checked, (*named, *local_names())))
    model = cleaned["model"]
    exploitability = cleaned.get("exploitability") or {}
    method, sentence = _method(exploitability)
    table = cleaned.get("strategy") or []
    illegal = [p for row in _strategy(table) if (p := row.illegal["final"]) is not None]
    return Summary(
        metrics=cleaned,
        game=cleaned["game"],
        model=model["name"],
        embedded=_embedded(model),
        method=method,
        method_sentence=sentence,
        rules=cleaned.get("rules") or rules_of(cleaned["game"]),
        tiles=_tiles(cleaned, method),
        facts=_facts(cleaned),
        results=cleaned.get("results") or [],
        strategy=_strategy(table[:MAX_INFOSETS]),
        infosets=len(table),
        worst_illegal=max(illegal, default=None),
        caveats=_caveats(cleaned, exploitability),
        games=_games(cleaned),
        pool=_pool(cleaned.get("pool")),
    )


def _games(metrics: Mapping[str, Any]) -> list[GameRow]:
    rows = []
    for game, figures in (metrics.get("by_game") or {}).items():
        exploitability, illegal = figures.get("exploitability") or {}, figures.get("illegal_move_rate") or {}
        unit = f", {exploitability['unit']}" if exploitability.get("unit") else ""
        rows.append(
            GameRow(
                game=game,
                method=f"{_method(exploitability)[0]}{unit}",
                exploitability={stage: _shown_exploitability(figures, stage) for stage in STAGES},
                illegal={stage: percent(illegal.get(stage)) for stage in STAGES},
                results=figures.get("results") or [],
            )
        )
    return rows


def _pool(pool: Mapping[str, Any] | None) -> list[PoolRow]:
    """Members and policy of a pool, with pay-offs among them."""
    if not pool:
        return []
    names = [*(f"step {count(member['step'])}" for member in pool["members"]), "policy"]
    ratings = [*(member["rating"] for member in pool["members"]), pool["rating"]]
    return [
        PoolRow(
            name,
            f"{rating:+.0f}",
            [
                ("", "") if score is None else (percent(score), count(games))
                for score, games in zip(pool["score"][i], pool["games"][i], strict=True)
            ],
        )
        for i, (name, rating) in enumerate(zip(names, ratings, strict=True))
    ]


def _clean(value: Any) -> Any:
    """Texts with nothing unseen in them; NaN and infinity, which were not measured, as `None`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _embedded(model: Mapping[str, Any]) -> str:
    if not model.get("embedded"):
        return ""
    size = f" with {count(model['parameters'])} parameters" if model.get("parameters") else ""
    kind = model.get("architecture") or "model"
    return (
        f"The model is embedded: a tiny {kind}{size} that the run built from a config, with random weights at the "
        "start. It is not a pretrained language model and knows nothing but this game's prompts."
    )


def _method(exploitability: Mapping[str, Any]) -> tuple[str, str]:
    """The method in a few words, and what is measured in one sentence."""
    unit = f", in {exploitability['unit']}" if exploitability.get("unit") else ""
    what = f"Exploitability is NashConv divided by the number of players{unit}: what a seat could gain on average by "
    what += "answering the policy with a best response; an equilibrium has 0"
    method = str(exploitability.get("method") or "").replace("_", " ")
    if method == "exact":
        return "exact", (
            f"{what}. It is measured exactly, from the model's own token probabilities at every information set, and "
            "probability on illegal replies counts as the offender's loss."
        )
    if method == "sampled":
        samples, floor = exploitability.get("samples"), exploitability.get("floor")
        name = "sampled"
        name += f", K={samples:,.0f}" if samples is not None else ", K not recorded"
        name += f", floor {number(floor)}" if floor is not None else ", floor not recorded"
        return name, (
            f"{what}. It is estimated from K sampled replies at each information set, which reads too high: even an "
            "equilibrium would read about the floor."
        )
    if method == "lower bound":
        return "lower bound", (
            f"{what}. What is shown is a lower bound: what a best response found by sampling gains; a better one may "
            "exist."
        )
    return "method not recorded", f"{what}. How it was measured was not recorded."


def _shown_exploitability(metrics: Mapping[str, Any], stage: str) -> str:
    """The exploitability of a stage as text, marked where it is a lower bound."""
    exploitability = metrics.get("exploitability") or {}
    value = exploitability.get(stage)
    bound = str(exploitability.get("method")).replace("_", " ") == "lower bound" and value is not None
    return ("≥ " if bound else "") + number(value)


def _tiles(metrics: Mapping[str, Any], method: str) -> list[Tile]:
    exploitability = metrics.get("exploitability") or {}
    illegal = metrics.get("illegal_move_rate") or {}
    seconds = metrics.get("seconds") or {}
    unit = f"{exploitability['unit']}, " if exploitability.get("unit") else ""
    tiles = []
    for stage, label in (("start", "at the start"), ("final", "after self-play"), ("plain", "after plain self-play")):
        if stage == "plain" and exploitability.get("plain") is None:
            continue
        tiles.append(Tile(f"Exploitability {label}", _shown_exploitability(metrics, stage), unit + method))
    notes = [f"{percent(illegal['start'])} at the start"] if illegal.get("start") is not None else []
    notes += [f"plain {percent(illegal['plain'])}"] if illegal.get("plain") is not None else []
    tiles.append(Tile("Illegal replies", percent(illegal.get("final")), ", ".join(notes)))
    notes = [f"{count(metrics[name])} {name}" for name in ("turns", "tokens") if metrics.get(name) is not None]
    tiles.append(Tile("Games played", count(metrics.get("games")), ", ".join(notes)))
    notes = [
        f"{name} {duration(seconds[name])}" for name in ("generation", "training") if seconds.get(name) is not None
    ]
    tiles.append(Tile("Time", duration(seconds.get("total")), ", ".join(notes)))
    return tiles


def _facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, machine = metrics["model"], metrics.get("machine") or {}
    place = [str(machine[name]) for name in ("processor", "accelerator") if machine.get(name)]
    if machine.get("processes"):
        place.append(f"{machine['processes']} process" + ("es" if machine["processes"] != 1 else ""))
    trained = metrics.get("games_trained") or []  # figures are of `game`, the first of them
    seconds = metrics.get("seconds") or {}
    times = [f"{name.replace('_', ' ')} {duration(value)}" for name, value in seconds.items() if value is not None]
    versions = [f"{name} {version}" for name, version in (metrics.get("versions") or {}).items() if version]
    # The embedded model's name tells its size
    told = model.get("embedded") or not model.get("parameters")
    size = None if told else f"{count(model['parameters'])} parameters"
    facts = [
        ("Game", metrics["game"]),
        ("Trained on", ", ".join(trained) if len(trained) > 1 else None),
        ("Model", ", ".join(str(part) for part in (model["name"], model.get("architecture"), size) if part)),
        ("Base model", model.get("base_model")),
        ("Recipe", metrics.get("recipe")),
        ("Command", metrics.get("command")),
        ("Seed", metrics.get("seed")),
        ("Machine", ", ".join(place)),
        ("Time", ", ".join(times)),
        ("Versions", ", ".join(versions)),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _strategy(table: Sequence[Mapping[str, Any]]) -> list[StrategyRow]:
    rows = []
    for entry in table:
        card, history = entry.get("card"), entry.get("history")
        label = str(entry.get("infoset", ""))
        if card is not None:
            label = f"{card}, after {history}" if history else f"{card}, first move"
        illegal: dict[str, float | None] = {}
        for stage in STAGES:
            known = [p for p in entry.get(stage) or [] if p is not None]
            illegal[stage] = max(0.0, 1 - sum(known)) if len(known) == len(entry["actions"]) else None
        for i, action in enumerate(entry["actions"]):
            bands = entry.get("equilibrium")
            rows.append(
                StrategyRow(
                    label=label,
                    action=str(action),
                    player=int(entry.get("player") or 0),
                    index=i,
                    actions=len(entry["actions"]),
                    probability={stage: entry[stage][i] if entry.get(stage) else None for stage in STAGES},
                    illegal=illegal,
                    band=(float(bands[i][0]), float(bands[i][1])) if bands else None,
                )
            )
    return rows


def _caveats(metrics: Mapping[str, Any], exploitability: Mapping[str, Any]) -> list[str]:
    """What the figures do not say, one sentence or two each."""
    caveats = []
    if metrics.get("finished") is False:
        caveats.append("The run was not finished: the figures are those of its last measurement.")
    if metrics["model"].get("embedded"):
        built_for = "these games" if metrics.get("by_game") else "this one game"
        caveats.append(
            f"The embedded model is far smaller than any language model in use and was built for {built_for}: its "
            "results do not carry over to them."
        )
    method = str(exploitability.get("method") or "").replace("_", " ")
    if method:
        caveats.append(
            "Exploitability says how far the policy is from an equilibrium against an opponent that knows it and "
            "answers as well as can be. It does not say how much the policy wins against weaker opponents, nor how it "
            "plays with another prompt, another sampling temperature or another game."
        )
    if method == "sampled":
        caveats.append("Sampling biases exploitability upward: compare it with the floor, not with 0.")
    if method == "lower bound":
        caveats.append("The true exploitability may be far above a lower bound.")
    if exploitability.get("final_given_legal") is not None:
        text = f"Given that replies are legal, exploitability ({_method(exploitability)[0]}) is "
        text += number(exploitability["final_given_legal"])
        if exploitability.get("plain_given_legal") is not None:
            text += f" (plain self-play: {number(exploitability['plain_given_legal'])})"
        caveats.append(f"{text}: the rest of the figure is what illegal replies cost.")
    if exploitability.get("unexplored_mass") is not None:
        caveats.append(
            f"Replies with {number(exploitability['unexplored_mass'])} of the probability were not followed to their "
            "end when action probabilities were computed."
        )
    if any(row.get("equilibrium") for row in metrics.get("strategy") or []):
        caveats.append(
            "Lying in the equilibrium range at every information set is necessary for an equilibrium, not sufficient: "
            "the probabilities of one equilibrium depend on each other. Exploitability is the test."
        )
    caveats.append("The figures are of one run with one seed.")
    return caveats
