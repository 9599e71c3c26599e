"""Quotes as evidence: a verdict counts only with words that do stand in the trace."""

from __future__ import annotations

import unicodedata
from functools import lru_cache


# Fewer characters that count would occur in almost any text
MIN_QUOTE_CHARS = 12
# Quotation marks, and marks of Markdown and LaTeX, which judges drop or change
_DROPPED = frozenset("\\*_`$#\"'\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2032\u2033")
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
# What a JSON parser makes of LaTeX whose backslash was not escaped: \times begins with a tab
_UNESCAPED = {"\x08": "b", "\x0c": "f", "\r": "r", "\t": "t"}


@lru_cache(maxsize=1024)
def squashed(text: str) -> str:
    """What of a text counts where a quote is looked for: no white space, letter case, quotation marks, or marks of
    Markdown and LaTeX."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    return "".join(c for c in text if c not in _DROPPED and not c.isspace() and unicodedata.category(c)[0] != "C")


def occurs(quote: str, text: str) -> bool:
    """Whether `quote` stands in `text`, [`squashed`] characters compared."""
    whole = squashed(text)
    latex = "".join(_UNESCAPED.get(c, c) for c in quote)
    return any(squashed(form) in whole for form in (quote, latex, latex.replace("\n", "n")))


def long_enough(quote: str, text: str) -> bool:
    """Whether a quote is evidence of anything: of [`MIN_QUOTE_CHARS`] characters that count, or the whole text."""
    return len(squashed(quote)) >= min(MIN_QUOTE_CHARS, max(1, len(squashed(text))))
