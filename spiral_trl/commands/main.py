"""`spiral-trl COMMAND ...`: finds the command, parses its arguments, and ends on bad input in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from ..errors import UsageError, did_you_mean, run_main
from ..version import __version__
from . import COMMANDS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 at its end, 2 with one line on stderr for bad input."""
    if not sys.stderr.isatty():
        # Read when transformers is imported, which most commands do only for a model
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        run_main(_dispatch, sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        # Whoever read the output has left, as `head` does; nothing may be flushed to it at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _dispatch(argv: Sequence[str] | None) -> None:
    arguments = list(argv or ())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    name = arguments[0]
    if name not in COMMANDS:
        allowed = ", ".join(COMMANDS)
        raise UsageError(f"unknown command {name!r}; allowed: {allowed}{did_you_mean(name, COMMANDS)}")
    command = import_module(f".{name}", __package__)
    parser = _Parser(
        prog=f"spiral-trl {name}",
        description=command.HELP,
        epilog=f"examples:\n{command.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    command.run(parser.parse_args(arguments[1:]))
    sys.stdout.flush()


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {does}" for name, does in COMMANDS.items()]
    return "\n".join(["usage: spiral-trl COMMAND ...", "", *lines, "", "spiral-trl COMMAND --help tells more."])
