"""The pictures of a run: drawn once, shown as PNG in the card and as SVG in the page.

In the page's SVG every colour becomes a CSS variable, so that one picture serves a light and a dark page; text stays
text. Colours are those of Okabe and Ito, and no two series differ by colour alone.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .formatting import interval, number, percent
from .summary import StrategyRow, Summary


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# What a colour stands for, as drawn on white. `report.css.jinja` gives both palettes under the same names.
COLORS = {
    "ink": "#1d2329",
    "muted": "#5a6570",
    "grid": "#dfe3e8",
    "surface": "#ffffff",
    "blue": "#0072b2",  # self-play with the run's settings, final
    "vermillion": "#d55e00",  # plain self-play
    "green": "#009e73",  # equilibrium
    "purple": "#cc79a7",  # a second seat
}
WIDTH = 5.4  # inches; 72 SVG units each

_STYLE: dict[Any, Any] = {
    "font.size": 11.5,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are text, whatever signs they hold
    "text.color": COLORS["ink"],
    "axes.edgecolor": COLORS["muted"],
    "axes.labelcolor": COLORS["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
    "figure.facecolor": COLORS["surface"],
    "axes.facecolor": "none",
    "savefig.facecolor": COLORS["surface"],
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("self_play", "self-play", {"color": COLORS["blue"]}),
    ("plain", "plain self-play", {"color": COLORS["vermillion"], "linestyle": (0, (4, 2))}),
)
# Stages of a strategy: name, label, height above the middle of the row (so that none hides another), marker.
_STAGES: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
    ("start", "start", 0.0, {"marker": "o", "mfc": COLORS["surface"], "mec": COLORS["muted"], "ms": 7}),
    (
        "plain",
        "after plain self-play",
        -0.17,
        {"marker": "s", "mfc": COLORS["vermillion"], "mec": COLORS["surface"], "ms": 7},
    ),
    ("final", "after self-play", 0.17, {"marker": "o", "mfc": COLORS["blue"], "mec": COLORS["surface"], "ms": 8}),
)


@dataclass(frozen=True)
class Picture:
    """One picture that can be drawn.

    Args:
        name (`str`): File name without suffix, and prefix of the SVG's ids.
        title (`str`): Heading.
        alt (`str`): What it shows, in words and figures, for those who do not see it.
        draw (`Callable[[], Figure]`): Draws it.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[], Figure]


def pictures(run: Summary) -> dict[str, list[Picture]]:
    """All pictures for which there are figures, by section: `curves`, `strategy`, `results`, `seats`."""
    sections: dict[str, list[Picture]] = {"curves": [], "strategy": [], "results": [], "seats": []}
    for key, title in (("exploitability", "Exploitability"), ("illegal_move_rate", "Illegal replies")):
        ends = []
        for name, label, _ in _RUNS:
            ys = run.curve(name, key)[1]
            if ys:
                show = number if key == "exploitability" else percent
                ends.append(f"{label} from {show(ys[0])} to {show(ys[-1])}")
        if ends:
            how = f" ({run.method})" if key == "exploitability" else ""
            alt = f"{title}{how} over training: {'; '.join(ends)}."
            sections["curves"].append(Picture(key, title, alt, partial(_curve, run, key)))
    for player in sorted({row.player for row in run.strategy}):
        rows = [row for row in run.strategy if row.player == player]
        rows = [row for row in rows if not (row.actions == 2 and row.index == 0)]  # the other action says it all
        if rows:
            alt = (
                f"Action probabilities of player {player} at {len(rows)} information sets; the table has the figures."
            )
            title = f"Player {player}"
            sections["strategy"].append(Picture(f"strategy_player_{player}", title, alt, partial(_strategy, rows)))
    for key, title in (("win_rate", "Win rate"), ("mean_return", "Mean return")):
        played = [row for row in run.results if row.get(key) and row[key][0] is not None]
        if played:
            said = "; ".join(f"{_matchup(row)} {interval(row[key], share=key == 'win_rate')}" for row in played)
            alt = f"{title} by opponent and seat: {said}."
            unit = (run.metrics.get("exploitability") or {}).get("unit")
            sections["results"].append(Picture(key, title, alt, partial(_results, played, key, unit)))
    if run.roles:
        said = "; ".join(f"{role} {number(run.curve('self_play', 'return', role)[1][-1])}" for role in run.roles)
        alt = f"Mean self-play return of each seat over training; at the end {said}."
        sections["seats"].append(Picture("return_by_seat", "Return by seat", alt, partial(_seats, run)))
    return sections


def to_svg(picture: Picture) -> str:
    """`picture` as an SVG element to stand inside a page: colours as CSS variables, ids of its own, no metadata."""
    buffer = io.StringIO()
    with _style(picture.name):
        picture.draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->", r"\s*<defs>\s*</defs>"):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{picture.name}-\1"', svg)
    svg = re.sub(r'href="#|url\(#', lambda m: f"{m[0]}{picture.name}-", svg)
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None
    label = html.escape(picture.alt)
    return re.sub(r"<svg[^>]*>", lambda _: f'<svg {view[0]} role="img" aria-label="{label}">', svg, count=1).strip()


def to_png(picture: Picture, path: Path) -> None:
    """`picture` as a PNG file on white."""
    with _style(picture.name):
        picture.draw().savefig(path, format="png", dpi=160, metadata={"Software": None})


@contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        yield


def _axes(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(length=0, pad=5)
    return figure, axes


def _legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    if axes.get_legend_handles_labels()[1]:
        figure.legend(
            loc="outside upper left", ncols=columns, borderpad=0, handlelength=1.9, columnspacing=1.6, fontsize=10.5
        )


def _count_axis(axes: Axes, run: Summary) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _compact(x)))
    axes.xaxis.set_major_locator(_locator(5))
    axes.set_xlabel("games of self-play" if run.curve_axis == "games" else "training step")
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.01)


def _locator(bins: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(bins)


def _compact(x: float) -> str:
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:g}{suffix}"
    return f"{x:g}"


def short(label: str) -> str:
    """A label that leaves room for what it labels."""
    line = " ".join(label.split())
    return line if len(line) <= 30 else f"{line[:29]}\N{HORIZONTAL ELLIPSIS}"


def _curve(run: Summary, key: str) -> Figure:
    """A quantity that is best at 0, over training.

    Logarithmic down to the smallest decade seen and linear from there, so that 0 itself has a place.
    """
    import math

    from matplotlib.ticker import FuncFormatter, NullLocator

    figure, axes = _axes(3.1)
    values: list[float] = []
    for name, label, style in _RUNS:
        xs, ys = run.curve(name, key)
        if xs:
            axes.plot(xs, ys, label=label, marker="." if len(xs) < 3 else None, **style)
            values += ys
    show = (lambda y: f"{y:g}") if key == "exploitability" else (lambda y: f"{100 * y:g}%")
    exploitability = run.metrics.get("exploitability") or {}
    floor = exploitability.get("floor") if key == "exploitability" else None
    if floor:
        axes.axhspan(0, floor, color=COLORS["green"], alpha=0.16, lw=0, label="floor of the estimate")
        values.append(floor)
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 10 * min(positive) and min(values) >= 0:
        first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        axes.set_yscale("symlog", linthresh=10.0**first, linscale=0.5)
        decades = range(first, last + 1, max(1, (last - first) // 4))
        axes.set_yticks([0, *(10.0**exponent for exponent in decades)])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, max(positive) * 1.4)
    else:
        axes.yaxis.set_major_locator(_locator(5))
        if not values or min(values) >= 0:
            axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: show(y)))
    if key == "exploitability":
        axes.spines["bottom"].set_visible(False)
        axes.axhline(0, color=COLORS["green"], lw=2.4, clip_on=False, label="equilibrium: 0")
    unit = f" ({exploitability['unit']})" if exploitability.get("unit") else ""
    axes.set_ylabel(f"exploitability{unit}" if key == "exploitability" else "share of replies")
    _count_axis(axes, run)
    _legend(figure, axes)
    return figure


def _strategy(rows: Sequence[StrategyRow]) -> Figure:
    """Dots for the probabilities of an action, on a band for its range over the equilibria."""
    figure, axes = _axes(0.36 * len(rows) + 1.1)
    ys = range(len(rows))
    banded = False
    for y, row in zip(ys, rows, strict=True):
        if row.band is not None:
            low, high = row.band
            label = None if banded else "equilibrium range"
            banded = True
            axes.barh(y, high - low, left=low, height=0.66, color=COLORS["green"], alpha=0.3, lw=0, label=label)
            for end in (low, high):
                axes.plot([end, end], [y - 0.33, y + 0.33], color=COLORS["green"], lw=3, solid_capstyle="butt")
    for stage, label, above, style in _STAGES:
        points = [(row.probability[stage], y - above) for y, row in zip(ys, rows, strict=True)]
        known = [(x, y) for x, y in points if x is not None]
        if known:
            axes.plot(*zip(*known, strict=True), linestyle="none", label=label, clip_on=False, zorder=5, **style)
    axes.set_yticks(list(ys), [short(f"{row.label}: {row.action}") for row in rows], color=COLORS["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.01, 1.01)
    axes.set_xlabel("probability of the action")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    _legend(figure, axes, 2)
    return figure


def _results(rows: Sequence[dict[str, Any]], key: str, unit: str | None) -> Figure:
    figure, axes = _axes(0.42 * len(rows) + 0.8)
    for y, row in enumerate(rows):
        value, low, high = row[key]
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], color=COLORS["blue"], lw=3.2, alpha=0.55)
        axes.plot(value, y, marker="o", color=COLORS["blue"], mec=COLORS["surface"], ms=9)
    axes.set_yticks(range(len(rows)), [short(_matchup(row)) for row in rows], color=COLORS["ink"])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    if key == "win_rate":
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_xlabel("share of games won")
    else:
        axes.axvline(0, color=COLORS["muted"], lw=1)
        axes.xaxis.set_major_locator(_locator(5))
        axes.set_xlabel(f"mean return{f' ({unit})' if unit else ''}")
    return figure


def _matchup(row: dict[str, Any]) -> str:
    return f"vs {row['opponent']}, as {row.get('role') or 'seat ' + str(row.get('seat'))}"


def _seats(run: Summary) -> Figure:
    figure, axes = _axes(3.1)
    colors = ("blue", "purple", "green", "vermillion")
    dashes = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
    values = run.metrics.get("game_value") or {}
    for i, role in enumerate(run.roles):
        xs, ys = run.curve("self_play", "return", role)
        color, dash = COLORS[colors[i % 4]], dashes[i % 4]
        axes.plot(xs, ys, color=color, linestyle=dash, label=short(role))
        if values.get(role) is not None:
            axes.axhline(values[role], color=color, lw=1, linestyle=(0, (1, 3)), label=short(f"game value, {role}"))
    axes.axhline(0, color=COLORS["muted"], lw=0.8)
    axes.yaxis.set_major_locator(_locator(5))
    unit = (run.metrics.get("exploitability") or {}).get("unit")
    axes.set_ylabel(f"mean return{f' ({unit})' if unit else ''}")
    _count_axis(axes, run)
    _legend(figure, axes)
    return figure
