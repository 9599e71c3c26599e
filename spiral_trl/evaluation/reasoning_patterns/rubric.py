"""Rubrics: which reasoning patterns are looked for, and by what they are known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ...names import unknown


_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_MOST_PATTERNS = 40
_MOST_CHARS = 2000


@dataclass(frozen=True)
class LexicalRules:
    """By what the heuristic labeller knows a pattern, without a judge.

    Args:
        rules (`tuple[re.Pattern[str], ...]`): Regular expressions, read without regard to case.
        at_least (`int`): How many matches, of all rules together, make the pattern present.
    """

    rules: tuple[re.Pattern[str], ...]
    at_least: int


@dataclass(frozen=True)
class Pattern:
    """A reasoning pattern.

    Args:
        name (`str`): Lower-case letters, digits and underscores.
        title (`str`): What tables call it.
        definition (`str`): What it is, for a judge.
        counts, does_not_count (`tuple[str, ...]`): What does, and does not, make it present.
        lexical ([`LexicalRules`], *optional*): For the heuristic labeller.
    """

    name: str
    title: str
    definition: str
    counts: tuple[str, ...] = ()
    does_not_count: tuple[str, ...] = ()
    lexical: LexicalRules | None = None


@dataclass(frozen=True)
class Rubric:
    """Patterns that belong together.

    Args:
        name (`str`): What the rubric is called.
        patterns (`tuple[Pattern, ...]`): At least one.
        sha256 (`str`): Hash of the file.
    """

    name: str
    patterns: tuple[Pattern, ...]
    sha256: str

    @property
    def names(self) -> list[str]:
        """Names of the patterns."""
        return [pattern.name for pattern in self.patterns]


def load_rubric(path: Path | None = None) -> Rubric:
    """The rubric in a YAML file; by default the shipped one, of the three patterns of the SPIRAL paper
    (arXiv 2506.24119, section 4.1).

    Raises:
        `ValueError`: In one line, where the file is no rubric.
    """
    shipped = files(__package__) / "rubrics" / "spiral.yaml"
    source = shipped if path is None else path
    where = "rubric" if path is None else str(path)
    if path is not None and not path.is_file():
        raise ValueError(f"there is no rubric file {path}")
    text = source.read_bytes()
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is no valid YAML: {error}") from None
    entries = _mapping(data, where, ("name", "patterns"))
    patterns = entries.get("patterns")
    if not isinstance(patterns, Mapping) or not 1 <= len(patterns) <= _MOST_PATTERNS:
        raise ValueError(f"{where}: patterns must be a mapping of 1 to {_MOST_PATTERNS} names to their definitions")
    return Rubric(
        name=_text(entries.get("name"), f"{where}: name"),
        patterns=tuple(_pattern(name, value, where) for name, value in patterns.items()),
        sha256=hashlib.sha256(text).hexdigest(),
    )


def rubric_yaml(name: str, patterns: Sequence[Pattern], comment: str) -> str:
    """A rubric as [`load_rubric`] reads it, without lexical rules, that opens with a comment."""
    data = {
        "name": name,
        "patterns": {pattern.name: {"title": pattern.title, "definition": pattern.definition} for pattern in patterns},
    }
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _pattern(name: object, value: object, where: str) -> Pattern:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: the name of a pattern has lower-case letters, digits and _, not {str(name)[:80]!r}"
        )
    where = f"{where}: {name}"
    entries = _mapping(value, where, ("title", "definition", "counts", "does_not_count", "lexical"))
    return Pattern(
        name=name,
        title=_text(entries.get("title", name.replace("_", " ")), f"{where}: title"),
        definition=_text(entries.get("definition"), f"{where}: definition"),
        counts=_texts(entries.get("counts", []), f"{where}: counts"),
        does_not_count=_texts(entries.get("does_not_count", []), f"{where}: does_not_count"),
        lexical=_lexical(entries["lexical"], f"{where}: lexical") if "lexical" in entries else None,
    )


def _lexical(value: object, where: str) -> LexicalRules:
    entries = _mapping(value, where, ("at_least", "rules"))
    at_least = entries.get("at_least", 1)
    if isinstance(at_least, bool) or not isinstance(at_least, int) or at_least < 1:
        raise ValueError(f"{where}: at_least must be a whole number from 1, not {at_least!r}")
    texts = _texts(entries.get("rules"), f"{where}: rules")
    if not texts:
        raise ValueError(f"{where}: rules must hold at least one regular expression")
    rules = []
    for text in texts:
        try:
            rule = re.compile(text, re.IGNORECASE)
        except re.error as error:
            raise ValueError(f"{where}: {text!r} is no regular expression: {error}") from None
        if rule.search(""):
            raise ValueError(f"{where}: {text!r} matches every text")
        rules.append(rule)
    return LexicalRules(tuple(rules), at_least)


def _mapping(value: object, where: str, allowed: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping with {', '.join(allowed)}")
    for key in value:
        if key not in allowed:
            raise ValueError(f"{where}: {unknown('key', str(key), allowed)}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > _MOST_CHARS:
        raise ValueError(f"{where} must be a text of at most {_MOST_CHARS} characters")
    return " ".join(value.split())


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list of texts")
    for item in value:
        if not isinstance(item, str) or not item.strip() or len(item) > _MOST_CHARS:
            raise ValueError(f"{where} must be a list of texts")
    return tuple(item.strip() for item in value)
