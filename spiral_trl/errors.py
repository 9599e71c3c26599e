"""Errors of the person who runs something: wrong names, values and files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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
    except UsageError:
        raise
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise UsageError(f"{where}: {message}" if where else message) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}" if where else error) from error


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'near'?` for the allowed name closest to `given`, or nothing where none is close."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
