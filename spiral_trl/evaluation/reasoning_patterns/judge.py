"""A judge: a model behind an OpenAI-compatible endpoint, its answers kept, its calls counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...errors import PlayerError
from ...players.endpoint import EndpointPlayer
from ...records import Message, Reply, Turn
from .cache import Answer, AnswerCache, digest


# Prompts that are in memory at once
_BLOCK = 256
# Told with how many answers there are, how many are wanted, and what is done
Progress = Callable[[int, int, str], object]


@dataclass(frozen=True)
class Request:
    """One question to a judge.

    Args:
        messages (`Callable`): Makes the chat that is sent: made anew where it is needed, as thousands are not held in
            memory.
        vote (`int`): The how many-th time the same is asked.
    """

    messages: Callable[[], tuple[Message, ...]]
    vote: int = 0

    @cached_property
    def digest(self) -> str:
        """A hash of the chat."""
        return digest([[message["role"], message["content"]] for message in self.messages()])


@dataclass(frozen=True)
class Plan:
    """What a list of requests will cost.

    Args:
        requests (`int`): Distinct requests.
        kept (`int`): Those that were answered before.
        characters (`int`): Length of the prompts that are to be sent.
    """

    requests: int
    kept: int
    characters: int

    @property
    def calls(self) -> int:
        """Calls to make, repeated ones not counted."""
        return self.requests - self.kept


class Judge:
    """Asks each request once, ever: answers stand in the cache, whatever becomes of the run.

    Args:
        player ([`~spiral_trl.players.endpoint.EndpointPlayer`]): Who is asked. Its `max_calls` is the budget.
        cache ([`AnswerCache`]): Opened.
        progress (`Callable`, *optional*): Called as answers come.
    """

    def __init__(self, player: EndpointPlayer, cache: AnswerCache, progress: Progress | None = None):
        self.player = player
        self.cache = cache
        self.progress = progress

    @property
    def name(self) -> str:
        """What the judge is called: its model and its sampling, without its URL."""
        return self.player.name

    def usage(self) -> dict[str, int]:
        """Calls of this run, repeated ones included, and their tokens as the server counts them."""
        return {key: getattr(self.player, key) for key in ("calls", "prompt_tokens", "completion_tokens")}

    def key(self, request: Request) -> str:
        """The name of a request in the cache: a hash of who is asked, with its sampling, what, and the how many-th
        time. Where the judge runs is no part of it."""
        return digest([self.name, request.digest, request.vote])

    def plan(self, requests: Iterable[Request]) -> Plan:
        """What [`ask`] would send."""
        seen: set[str] = set()
        kept = characters = 0
        for request in requests:
            key = self.key(request)
            if key not in seen:
                seen.add(key)
                if self.cache.get(key) is not None:
                    kept += 1
                else:
                    characters += sum(len(message["content"]) for message in request.messages())
        return Plan(len(seen), kept, characters)

    def ask(self, requests: Sequence[Request], what: str) -> list[str]:
        """Gets an answer to every request that has none, in order, and answers their keys in the cache.

        Args:
            requests (`Sequence[Request]`): What is asked. Equal requests are sent once.
            what (`str`): What is done, for the progress.

        Raises:
            [`~spiral_trl.errors.PlayerError`]: If the endpoint fails or the budget is spent. What was answered is kept.
        """
        keys = [self.key(request) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if self.cache.get(key) is None}
        total = len(set(keys))
        done = [total - len(missing)]
        pending = list(missing.items())
        for start in range(0, len(pending), _BLOCK):
            block = pending[start : start + _BLOCK]
            limit = self.player.max_calls
            left = len(block) if limit is None else max(0, limit - self.player.calls)

            def keep(index: int, reply: Reply, block: list[tuple[str, Request]] = block) -> None:
                try:
                    self.cache.put(block[index][0], Answer(reply.text, reply.finish_reason))
                except OSError as error:
                    raise PlayerError(f"answers cannot be kept in {self.cache.folder}: {error.strerror}") from error
                done[0] += 1
                if self.progress is not None:
                    self.progress(done[0], total, what)

            paid = block[:left]
            self.player.reply([_turn(request.messages()) for _, request in paid], keep)
            if len(paid) < len(block):
                raise PlayerError(
                    f"{self.name}: all of its {limit} calls are spent, and {len(pending) - start - len(paid)} more are "
                    "needed"
                )
        return keys


def _turn(messages: tuple[Message, ...]) -> Turn:
    return Turn(
        game="reasoning patterns",
        episode=0,
        seed=0,
        index=0,
        player=0,
        role="judge",
        messages=messages,
        legal_actions=None,
    )
