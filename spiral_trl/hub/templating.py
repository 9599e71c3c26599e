"""Templates of the package's pages and cards."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

from .formatting import count, interval, number, percent, probability


if TYPE_CHECKING:
    from jinja2 import Environment


def environment() -> Environment:
    """Jinja environment of the package's templates: HTML is escaped, and an undefined name is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    env = Environment(
        loader=FunctionLoader(template_text),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters.update(
        number=number,
        percent=percent,
        count=count,
        interval=interval,
        probability=probability,
        markdown=markdown,
        code_block=code_block,
    )
    return env


def template_text(name: str) -> str:
    """Text of a template that is installed with the package."""
    return files("spiral_trl.hub").joinpath("templates", name).read_text(encoding="utf-8")


def markdown(text: object) -> str:
    """`text` as one line of plain Markdown text, also within a table."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", line).replace("&", "&amp;")


def code_block(text: str, language: str = "") -> str:
    """`text` as a fenced block that its own backticks cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
