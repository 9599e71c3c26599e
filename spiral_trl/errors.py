"""Errors: wrong names, values and files of the person who runs something, and games that cannot go on."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn


class UsageError(ValueError):
    """Input that cannot be used. Its message is one line: what was given, what is allowed, and the nearest match.

    Commands print it without a traceback and exit with 2; see [`~spiral_trl.cli.run_recipe`].
    """

    def __init__(self, message: object):
        super().__init__(" ".join(str(message).split()))


@contextmanager
def usage_errors(where: str = "") -> Iterator[None]:
    """Turns what checks of input raise (`ValueError`, `TypeError`, `OSError`) into [`UsageError`].

    For code that only parses and checks. Around code that computes, it would hide a defect's traceback.

    Args:
        where (`str`, *optional*): What was being read, such as a file; stands before the message.
    """
    try:
        yield
    except (UsageError, BrokenPipeError):
        raise
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise UsageError(f"{where}: {message}" if where else message) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}" if where else error) from error


class PlayerError(RuntimeError):
    """A player that cannot answer: an endpoint that stays unreachable, a budget of calls that is spent."""


class PlayError(RuntimeError):
    """Games that could not be played to their end. What was played is kept.

    Raised by [`~spiral_trl.rollout.play`] where a game's code raises or a player raises [`PlayerError`]; the cause is
    chained. Its message names the game, the seed and the moves so far. Other code that looks at games raises it too,
    where a game's code does.

    Args:
        message (`str`): What happened.
        episodes ([`~spiral_trl.records.EpisodeBatch`], *optional*): The games that were finished before.
    """

    def __init__(self, message: str, episodes: Any = None):
        super().__init__(message)
        self.episodes = episodes


def game_failed(game: str, error: Exception | str, moves: str = "none") -> PlayError:
    """The error for a game whose code raised, or that does what no game may.

    Args:
        game (`str`): Which game, such as `kuhn_poker with seed 3`.
        error (`Exception` or `str`): What was raised, or what the game did.
        moves (`str`, *optional*, defaults to `"none"`): The moves so far.
    """
    what = error if isinstance(error, str) else f"raised {type(error).__name__}: {error}"
    return PlayError(" ".join(f"{game} {what}; moves so far: {moves}".split()))


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'near'?` for the allowed name closest to `given`, or nothing where none is close."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def run_main(main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `main(argv)` and exits: 0 at its end; with one line on stderr 2 where it raises [`UsageError`], 1 where games
    cannot go on ([`PlayError`], [`PlayerError`]), and 130 where it is interrupted.

    Of several processes only the first tells of bad input, which all of them see. Any other exception passes with its
    traceback: it is a defect or a failure midway, not bad input.

    Args:
        main (`Callable`): What to run. Its answer is ignored.
        argv (`Sequence[str]`, *optional*, defaults to `sys.argv[1:]`): Command line without the program's name.
    """
    try:
        main(argv)
    except UsageError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (PlayError, PlayerError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
