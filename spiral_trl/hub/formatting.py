"""Figures and untrusted text as they are shown, the same in the page and the card."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence


NOT_MEASURED = "not measured"
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, text direction and joiners, surrogates, line separators


def number(value: float | None) -> str:
    """A measured figure in three significant digits; `7.0e-5` where it is very small."""
    if value is None:
        return NOT_MEASURED
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text


def percent(value: float | None) -> str:
    """A share as a percentage: `62.5%`, `0.007%`."""
    if value is None:
        return NOT_MEASURED
    share = 100 * value
    if share == 0:
        return "0%"
    if abs(share) >= 1:
        return f"{share:.1f}%"
    if abs(share) < 1e-3:
        return f"{number(share)}%"
    digits = 1 - math.floor(math.log10(abs(share)))
    return f"{share:.{digits}f}".rstrip("0") + "%"


def probability(value: float | None) -> str:
    """A probability in two decimals; what is not 0 or 1 does not look like it."""
    if value is None:
        return "\N{EN DASH}"
    if 0 < value < 0.005:
        return "< 0.01"
    return "> 0.99" if 0.995 <= value < 1 else f"{value:.2f}"


def count(value: int | None) -> str:
    """A count with thousands separated."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as `45 s`, `2 min 10 s` or `3 h 05 min`."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def interval(triple: Sequence[float | None] | None, share: bool = False) -> str:
    """A value with its interval, to as many digits as the interval's width allows: `0.60 [0.57, 0.63]`."""
    value, low, high = triple or (None, None, None)
    if value is None or low is None or high is None:
        return percent(value) if share else number(value)
    if share:
        return f"{100 * value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
    digits = min(6, max(0, 1 - math.floor(math.log10(high - low)))) if high > low else 3
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "\N{MINUS SIGN}")


def visible(text: str) -> str:
    """`text` with the characters that cannot be seen, or that change how others are seen, written as escapes.

    Line ends and tabs stay.
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _UNSEEN else f"\\u{ord(char):04x}" for char in text
    )
