"""A model behind an OpenAI-compatible chat endpoint as a player: a hosted API, or a server such as vLLM's.

Requests are made here rather than by [`~huggingface_hub.InferenceClient`], which sends the Hugging Face token stored on
the machine to servers that need no key, and refuses every server where the Hub is set offline.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from ..errors import PlayerError
from ..records import Reply, Turn


if TYPE_CHECKING:
    from httpx2 import Client, Response

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"

_RETRIED_STATUS = {408, 409, 425, 429}
_LONGEST_BACKOFF = 30.0
# A server that asks for a longer pause is given up
_LONGEST_PAUSE = 120.0
_MOST_BYTES = 10_000_000
_SHOWN_CHARS = 200


class _Retry(Exception):
    """A call that failed and may be made again, after `pause` seconds where the server says so."""

    def __init__(self, reason: str, pause: float | None = None):
        super().__init__(reason)
        self.pause = pause


def check_endpoint(base_url: str = OPENAI_URL, api_key_env: str = "OPENAI_API_KEY") -> None:
    """Everything that can be known to be wrong with an endpoint without calling it.

    Raises:
        `ValueError`: If the URL is malformed or holds credentials, or the key is missing. No message shows the key.
    """
    wanted = f"base_url of endpoint must be a URL such as {OPENAI_URL} or http://localhost:8000/v1"
    if "@" in base_url or "?" in base_url or "#" in base_url:
        # Not quoted: what follows these signs may be a secret
        raise ValueError(f"{wanted}, without user, password or query; the key comes from api_key_env")
    if not base_url.isascii() or not base_url.isprintable() or " " in base_url:
        raise ValueError(f"{wanted}, not {base_url!r}")
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{wanted}, not {base_url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(f"{wanted}, not {base_url!r}")
    _read_key(api_key_env)


def _read_key(api_key_env: str) -> str | None:
    """The key in the environment variable `api_key_env`; `None` where that is `none`."""
    if api_key_env == "none":
        return None
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env):
        # Not quoted: it may be the key itself
        raise ValueError(
            "api_key_env of endpoint must be the name of an environment variable in capitals, such as OPENAI_API_KEY, "
            "or none"
        )
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"endpoint needs a key in the environment variable {api_key_env}, which is not set; a server without keys "
            "takes api_key_env=none"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(f"the key in the environment variable {api_key_env} holds characters that no key has")
    return key


def endpoint_name(
    model: str, max_tokens: int = 1024, temperature: float | None = None, top_p: float | None = None
) -> str:
    """How an endpoint is called in records and tables: by its model and what changes its replies, not by its URL."""
    stated = {"max_tokens": None if max_tokens == 1024 else max_tokens, "temperature": temperature, "top_p": top_p}
    others = "".join(f",{key}={value}" for key, value in stated.items() if value is not None)
    return f"endpoint(model={model}{others})"


class EndpointPlayer:
    """Asks an OpenAI-compatible chat endpoint, many turns at once.

    Failures that may pass (timeouts, lost connections, status 408, 409, 425, 429 and 5xx, answers that are no chat
    completion) are tried again after an exponentially growing pause with jitter, or the one that `Retry-After` asks
    for. Anything else, or the last failure, is a [`~spiral_trl.errors.PlayerError`]. Of an answer only the content
    counts; separate reasoning fields are ignored. The server draws the replies: games do not repeat by their seed.

    Args:
        model (`str`): Name of the model at the endpoint.
        base_url (`str`, *optional*, defaults to OpenAI's): URL before `/chat/completions`.
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`): Environment variable that holds the key, or
            `none` for servers without keys. The key itself is read for each batch and kept nowhere.
        max_tokens (`int`, *optional*, defaults to `1024`): Longest reply in tokens.
        max_tokens_field (`str`, *optional*, defaults to `"max_tokens"`): What the request calls it: `max_tokens`, or
            `max_completion_tokens` for models that refuse the former.
        temperature, top_p (`float`, *optional*): Sampling; by default the server's.
        timeout (`float`, *optional*, defaults to `120.0`): Seconds for one call.
        max_retries (`int`, *optional*, defaults to `5`): Calls after the first one for a turn.
        max_calls (`int`, *optional*): Most calls over the player's life, repeated ones included.
        concurrency (`int`, *optional*, defaults to `8`): Most calls at once.
        backoff (`float`, *optional*, defaults to `1.0`): First pause in seconds.

    Attributes:
        calls, prompt_tokens, completion_tokens (`int`): What was used so far; tokens as the server counts them.

    Raises:
        `ValueError`: See [`check_endpoint`].
    """

    # Replies are paid for
    speculative = False

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI_URL,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        max_tokens: int = 1024,
        max_tokens_field: str = "max_tokens",
        temperature: float | None = None,
        top_p: float | None = None,
        timeout: float = 120.0,
        max_retries: int = 5,
        max_calls: int | None = None,
        concurrency: int = 8,
        backoff: float = 1.0,
    ):
        check_endpoint(base_url, api_key_env)
        self.model = model
        self.base_url = base_url.rstrip("/")
        self.api_key_env = api_key_env
        self.timeout = timeout
        self.max_retries = max_retries
        self.max_calls = max_calls
        self.concurrency = concurrency
        self.backoff = backoff
        self.name = endpoint_name(model, max_tokens, temperature, top_p)
        sampling = {"temperature": temperature, "top_p": top_p}
        self._request: dict[str, Any] = {
            "model": model,
            max_tokens_field: max_tokens,
            **{key: value for key, value in sampling.items() if value is not None},
        }
        self.calls = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._lock = threading.Lock()

    def reply(self, turns: Sequence[Turn], keep: Callable[[int, Reply], object] | None = None) -> list[Reply]:
        """One reply for each turn.

        Args:
            turns (`Sequence[Turn]`): What is asked.
            keep (`Callable`, *optional*): Called with the index of a turn and its reply as soon as that is there, by
                the thread that made the call: what was paid for is kept, however the batch ends. Who passes it shows
                progress on its own.

        Raises:
            [`~spiral_trl.errors.PlayerError`]: If one of them stays without an answer, or `max_calls` does not suffice.
        """
        if not turns:
            return []
        import httpx2
        from huggingface_hub.utils import tqdm

        left = None if self.max_calls is None else self.max_calls - self.calls
        if left is not None and left < len(turns):
            # Asked for in part, the games would not go on either, and the calls would be paid for
            raise self._failed(f"{left} of max_calls={self.max_calls} calls are left, and {len(turns)} are needed")
        try:
            key = _read_key(self.api_key_env)
        except ValueError as error:
            raise self._failed(str(error)) from None
        stop = threading.Event()
        # Shown only to a person, and only where it takes a while
        hidden = keep is not None or not sys.stderr.isatty()
        bar = tqdm(total=len(turns), desc=self.name, disable=hidden, delay=3, leave=False)
        with (
            httpx2.Client(
                headers={} if key is None else {"Authorization": f"Bearer {key}"},
                timeout=self.timeout,
                limits=httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            ) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
            bar,
        ):

            def answer(index: int) -> Reply:
                reply = self._answer(client, turns[index], key, stop)
                if keep is not None:
                    keep(index, reply)
                return reply

            futures = [pool.submit(answer, index) for index in range(len(turns))]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException:
                stop.set()
                for future in futures:
                    future.cancel()
                raise
        return [future.result() for future in futures]

    def sample(
        self, turns: Sequence[Turn], which: np.ndarray, seeds: np.ndarray, index: np.ndarray
    ) -> tuple[list[Reply], np.ndarray]:
        """A reply of its own for each game; see [`~spiral_trl.players.base.Player`]."""
        return self.reply([turns[row] for row in which.tolist()]), np.arange(len(which))

    def _failed(self, reason: str) -> PlayerError:
        return PlayerError(f"{self.name} at {self.base_url}: {reason}")

    def _answer(self, client: Client, turn: Turn, key: str | None, stop: threading.Event) -> Reply:
        """The reply to one turn, after as many calls as it takes."""
        tries = 0
        while True:
            with self._lock:
                if self.max_calls is not None and self.calls >= self.max_calls:
                    raise self._failed(f"all of max_calls={self.max_calls} calls are spent")
                self.calls += 1
            tries += 1
            try:
                return self._call(client, turn, key)
            except _Retry as failure:
                if tries > self.max_retries:
                    raise self._failed(
                        f"no answer after {tries} {'call' if tries == 1 else 'calls'}: {failure}"
                    ) from None
                # Jitter keeps calls that failed together from coming back together
                backoff = min(self.backoff * 2 ** (tries - 1), _LONGEST_BACKOFF) * random.uniform(0.5, 1.5)
                pause = max(backoff, failure.pause or 0.0)
                if pause > _LONGEST_PAUSE:
                    raise self._failed(f"{failure}; it asks for a pause of {pause:.0f} s") from None
                logger.info("%s: %s; the next call is in %.1f s", self.name, failure, pause)
            if stop.wait(pause):
                raise self._failed("stopped")

    def _call(self, client: Client, turn: Turn, key: str | None) -> Reply:
        """The reply to one turn by one call."""
        import httpx2

        deadline = time.monotonic() + self.timeout
        # Escaped, so that no text of a game can be impossible to encode
        request = json.dumps({**self._request, "messages": [dict(message) for message in turn.messages]})
        late = _Retry(f"no answer within {self.timeout:g} s")
        try:
            with client.stream(
                "POST",
                f"{self.base_url}/chat/completions",
                content=request.encode("ascii"),
                headers={"Content-Type": "application/json"},
            ) as response:
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if time.monotonic() > deadline:
                        raise late
                    if len(received) > _MOST_BYTES:
                        raise _Retry(f"an answer of more than {_MOST_BYTES:,} bytes")
        except httpx2.TimeoutException:
            raise late from None
        except httpx2.RequestError as error:
            raise _Retry(f"{type(error).__name__}: {_shown(str(error), key)}") from None
        if not response.is_success:
            raise self._refused(response, bytes(received), key)
        return self._read(bytes(received))

    def _refused(self, response: Response, body: bytes, key: str | None) -> Exception:
        """The error for an answer with a status other than 2xx."""
        status = response.status_code
        # What a server says about a wrong key may repeat parts of it
        says = "" if status in (401, 403) else _shown(_error_message(body), key)
        reason = f"status {status}{f' ({says})' if says else ''}"
        if status in _RETRIED_STATUS or status >= 500:
            return _Retry(reason, _retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            reason += f": the key is not accepted; it comes from api_key_env={self.api_key_env}"
        return self._failed(reason)

    def _read(self, body: bytes) -> Reply:
        """The reply in the body of an answer."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise _Retry("an answer that is no JSON") from None
        try:
            choice = answer["choices"][0]
            content, finish_reason = choice["message"].get("content"), choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _Retry("an answer without choices") from None
        if content is None and finish_reason == "length":
            content = ""  # the reply was cut while the model still reasoned
        if not isinstance(content, str):
            raise _Retry("an answer without content")
        usage = answer.get("usage")
        with self._lock:
            self.prompt_tokens += _count(usage, "prompt_tokens")
            self.completion_tokens += _count(usage, "completion_tokens")
        return Reply(text=content, finish_reason="length" if finish_reason == "length" else "stop")


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def _retry_after(header: str | None) -> float | None:
    """Seconds until the time that a `Retry-After` header names, as seconds or as a date."""
    if header is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", header.strip()):
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _error_message(body: bytes) -> str:
    """What a server says went wrong: the message in its JSON, or the text as it is."""
    text = body[:100_000].decode("utf-8", errors="replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return "" if text.lstrip().startswith("<") else text


def _shown(text: str, key: str | None) -> str:
    """Untrusted text for an error: short, on one line, printable, and nothing where it repeats a part of the key."""
    if key is not None and any(key[start : start + 6] in text for start in range(max(1, len(key) - 5))):
        return ""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
