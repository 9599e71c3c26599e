"""Takes out of text what belongs to the machine that wrote it, before it is published.

A command line or a training argument may hold absolute paths, host and user names, private addresses and access
tokens. [`redact`] works on one text, [`redact_tree`] on nested dictionaries and lists such as `metrics.json`.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit


PUBLIC_HOSTS = frozenset({"huggingface.co", "hf.co", "arxiv.org", "github.com", "pypi.org"})
# Names that many machines share: they say nothing, and taking them out would spoil ordinary sentences.
COMMON_NAMES = frozenset({"root", "localhost", "user", "users", "admin", "ubuntu", "runner", "nobody", "home"})

_SECRET_KEY = (
    r"(?:[\w-]*[_-])?(?:hub|hf|api|auth|access|bearer|refresh|wandb)[_-](?:token|key)"
    r"|token|(?:[\w-]*[_-])?(?:secret|password|passwd|apikey|secret[_-]key)"
)
_SECRET_FIELD = re.compile(_SECRET_KEY, re.IGNORECASE)
_SECRET_OPTION = re.compile(
    rf"""((?<!\S)--?(?:{_SECRET_KEY})(?:\s+|=)(?!-)|\b(?:{_SECRET_KEY})=)("[^"]*"|'[^']*'|[^\s"']+)""", re.IGNORECASE
)
_TOKEN = re.compile(
    r"\b(?:hf_|api_org_|sk-|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abp]-|AKIA)[\w-]{8,}|\bBearer\s+[\w.~+/-]{8,}=*"
)
_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s\"'<>`]+)", re.IGNORECASE)
_ADDRESS = re.compile(
    r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\b[\w.+-]+@[\w.-]+(?=:)|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\w.])"
)
_ROOTS = "home|Users|root|tmp|var|mnt|scratch|data|work|workspace|opt|srv|etc|usr|private|content|Volumes"
_PART = r"(?:\\ |[^\s/\\\"'<>|:;,()\[\]{}=`])+"  # a space in a name stands behind a backslash
_PATH = re.compile(
    r"""(?P<quote>["'])(?:/(?!/)|~[\w.-]*/|[A-Za-z]:\\|\\\\)[^"'\n]*(?P=quote)"""  # quoted: may hold spaces
    rf"""|(?<![\w/.<~])/(?:(?:{_ROOTS})\b(?:/(?:{_PART})?)*|{_PART}(?:/{_PART})+/?)"""
    rf"""|(?<![\w/])~[\w.-]+(?:/{_PART})*/?"""
    r"""|(?<!\w)[A-Za-z]:\\[^\s"']*|(?<![\w\\])\\\\[\w.-]+\\[^\s"']*"""
)
_HOME = re.compile(r"^(?:/(?:home|Users)/[^/]+|/root|~[\w.-]*|[A-Za-z]:\\Users\\[^\\]+)(?:[/\\]|$)")


@lru_cache(maxsize=1)
def local_names() -> tuple[str, ...]:
    """Host and user name of this machine, longest first, without those that many machines share."""
    names = {socket.gethostname(), socket.gethostname().split(".")[0], Path.home().name}
    with suppress(KeyError, OSError):  # a user id without an entry, as in some containers
        names.add(getpass.getuser())
    kept = {name for name in names if len(name) >= 3 and name.lower() not in COMMON_NAMES}
    return tuple(sorted(kept, key=lambda name: (-len(name), name)))


def redact(text: str, names: Iterable[str] | None = None) -> str:
    """`text` without tokens, private addresses, absolute paths, and host and user names.

    A path below the working directory becomes relative to it; of any other absolute path only the last part stays
    (`<path>/kuhn.yaml`), and nothing of a home folder itself. Links to public sites stay.

    Args:
        text (`str`): The text.
        names (`Iterable[str]`, *optional*): Names to take out as whole words. By default those of this machine; pass
            `()` for text of a model or a game, where an ordinary word may equal a user's name.
    """
    names = local_names() if names is None else tuple(names)
    text = _TOKEN.sub("<token>", _SECRET_OPTION.sub(r"\1<token>", text))
    parts = _URL.split(text)  # every second part is a link
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = part if _is_public(part) else "<address>"
            continue
        part = _PATH.sub(_shorten, _ADDRESS.sub("<address>", part))
        for name in names:
            part = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", part)
        parts[i] = part
    return "".join(parts)


def redact_tree(value: object, names: Iterable[str] | None = None) -> object:
    """A copy of nested dictionaries and lists with every text redacted, keys included.

    The value of a key that names a secret (`hub_token`, `password`) is taken out whatever it looks like.
    """
    names = local_names() if names is None else tuple(names)
    if isinstance(value, str):
        return redact(value, names)
    if isinstance(value, dict):
        return {
            redact(key, names) if isinstance(key, str) else key: "<token>"
            if isinstance(key, str) and isinstance(item, str) and _SECRET_FIELD.fullmatch(key)
            else redact_tree(item, names)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact_tree(item, names) for item in value]
    return value


def _is_public(url: str) -> bool:
    return urlsplit(url).netloc.lower().removeprefix("www.") in PUBLIC_HOSTS


def _shorten(match: re.Match[str]) -> str:
    quote = match["quote"] or ""
    path = match[0].removeprefix(quote).removesuffix(quote) if quote else match[0]
    here, home = os.getcwd(), str(Path.home())
    # Relative to the working directory, unless that is so high up that the rest would name the user.
    if path.startswith(here + "/") and here != "/" and not home.startswith(here):
        return quote + path[len(here) + 1 :] + quote
    rest = _HOME.sub("", path).rstrip("/\\")
    name = re.split(r"[/\\]", rest)[-1]
    return f"{quote}<path>/{name}{quote}" if name else f"{quote}<path>{quote}"
