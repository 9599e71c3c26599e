"""What a model reads when its activations are collected: games as each seat saw them, or texts; as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import UsageError, did_you_mean, usage_errors
from ..players.prompts import PromptTemplate, find_prompt_template
from ..records import Episode, Reply, Step, Turn
from .store import written_whole


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The documents' table of a store, and its columns; -1 stands for none
TABLE = "documents.parquet"
COLUMNS = ("document", "group", "step", "player", "turn", "start", "reply", "length", "cut")
# Texts that are tokenised at once
_TEXTS = 64


@dataclass(frozen=True)
class Document:
    """Tokens that a model reads in one go.

    Args:
        ids (`tuple[int, ...]`): Token ids.
        group (`int`): The game (its place among the episodes) or the text: the unit that statistics resample.
        start (`int`, *optional*, defaults to `0`): Tokens before it are read, and not kept: an earlier document of the
            same seat had them.
        reply (`int`, *optional*): Where the reply begins: the player wrote the tokens from there on. Where the document
            was cut before its reply, it is past the last token. `None` outside games.
        step (`int`, *optional*, defaults to `-1`): Index of the step in its episode.
        player (`int`, *optional*, defaults to `-1`): Seat.
        turn (`int`, *optional*, defaults to `-1`): `Turn.index`.
        cut (`int`, *optional*, defaults to `0`): Tokens that were left off its end.
    """

    ids: tuple[int, ...]
    group: int
    start: int = 0
    reply: int | None = None
    step: int = -1
    player: int = -1
    turn: int = -1
    cut: int = 0

    def shortened(self, max_tokens: int | None) -> Document:
        """The document cut to its first `max_tokens` tokens, which says how many were left off."""
        if max_tokens is None or len(self.ids) <= max_tokens:
            return self
        return replace(
            self,
            ids=self.ids[:max_tokens],
            start=min(self.start, max_tokens),
            cut=self.cut + len(self.ids) - max_tokens,
        )


def episode_documents(
    episodes: Sequence[Episode],
    tokenizer: PreTrainedTokenizerBase,
    prompt_template: str | PromptTemplate = "chat",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
) -> Iterator[Document]:
    """One document for each step of each game: what the seat was shown, and what it answered.

    Recorded token ids are read as they are where they are this tokenizer's: where they spell the recorded reply. Replies
    of other players are rendered: the prompt by the template, the text of the reply, and the token that ends it.

    A seat's chat grows from step to step, and a causal model computes equal activations for a shared beginning. What a
    document shares with the one before of the same seat comes before its `start`, so that no token of a game counts
    twice. The prompt's last token, where the reply is decided, and the reply are always kept.

    Args:
        episodes (`Sequence[Episode]`): The games. Their places are the documents' groups.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's tokenizer.
        prompt_template (`str` or [`~spiral_trl.players.prompts.PromptTemplate`], *optional*, defaults to `"chat"`):
            How turns without recorded ids are written; see [`~spiral_trl.players.prompts`].
        chat_template_kwargs (`Mapping`, *optional*): Passed to `apply_chat_template`.
        max_tokens (`int`, *optional*): Longer documents are cut to their first so many tokens; [`Document`] counts the
            others.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the template is unknown, or a turn must be rendered and the tokenizer
            cannot be used with it.
    """
    _check_positive("max_tokens", max_tokens)
    with usage_errors():
        template = find_prompt_template(prompt_template)
    return _of_episodes(episodes, _Renderer(tokenizer, template, chat_template_kwargs or {}), max_tokens)


def _of_episodes(episodes: Sequence[Episode], renderer: _Renderer, max_tokens: int | None) -> Iterator[Document]:
    for group, episode in enumerate(episodes):
        before: dict[int, tuple[int, ...]] = {}
        for number, step in enumerate(episode.steps):
            prompt, reply = renderer.ids(step)
            ids, seat = prompt + reply, step.turn.player
            start = min(_shared(before.get(seat, ()), ids), max(len(prompt) - 1, 0))
            document = Document(ids, group, start, len(prompt), number, seat, step.turn.index).shortened(max_tokens)
            before[seat] = document.ids
            yield document


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


class _Renderer:
    """Token ids of a step's prompt and reply. Remembers prompts and replies: small games have few."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, kwargs: Mapping[str, Any]):
        self.tokenizer = tokenizer
        self.template = template
        self.kwargs = {**kwargs, **template.arguments()}
        self.vocabulary = len(tokenizer)
        self._prepared: tuple[str, int | None] | None = None
        self._prompts: dict[tuple, tuple[int, ...]] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    def ids(self, step: Step) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self._ours(step.reply):
            return cast("tuple[int, ...]", step.reply.prompt_ids), cast("tuple[int, ...]", step.reply.completion_ids)
        return self._prompt(step.turn), self._reply(step.reply)

    def _ours(self, reply: Reply) -> bool:
        """Whether the reply has ids, and they are this tokenizer's."""
        if reply.prompt_ids is None or reply.completion_ids is None:
            return False
        if max(chain(reply.prompt_ids, reply.completion_ids), default=0) >= self.vocabulary:
            return False
        if reply.completion_ids not in self._texts:
            text = cast("str", self.tokenizer.decode(list(reply.completion_ids), skip_special_tokens=True))
            _remember(self._texts, reply.completion_ids, text)
        # The text also has the reasoning that the prompt opened
        return reply.text.endswith(self._texts[reply.completion_ids])

    def _prepare(self) -> tuple[str, int | None]:
        """What of a reply stands in the prompt, and the token that ends a reply."""
        if self._prepared is None:
            with usage_errors():
                self.template.check(self.tokenizer)
            end = next(iter(self.template.eos_token_ids(self.tokenizer)), self.tokenizer.eos_token_id)
            self._prepared = self.template.opened_reasoning(self.tokenizer, **self.kwargs), cast("int | None", end)
        return self._prepared

    def _prompt(self, turn: Turn) -> tuple[int, ...]:
        self._prepare()
        key = tuple((message["role"], message["content"]) for message in turn.messages)
        if key not in self._prompts:
            ids = self.tokenizer.apply_chat_template(
                cast("list[dict[str, str]]", list(turn.messages)),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **self.kwargs,
            )
            _remember(self._prompts, key, tuple(cast("list[int]", ids)))
        return self._prompts[key]

    def _reply(self, reply: Reply) -> tuple[int, ...]:
        opened, end = self._prepare()
        ids = self.tokenizer.encode(reply.text.removeprefix(opened), add_special_tokens=False, verbose=False)
        return (*ids, end) if reply.finish_reason == "stop" and end is not None else tuple(ids)


def _remember(known: dict, key: Any, value: Any) -> None:
    if len(known) > 100_000:
        known.clear()
    known[key] = value


def text_documents(
    dataset: Iterable[Mapping[str, Any] | str],
    tokenizer: PreTrainedTokenizerBase,
    column: str = "text",
    max_tokens: int = 1024,
    bos: bool | None = None,
    drop_first: bool = False,
) -> Iterator[Document]:
    """Documents of texts. A text longer than `max_tokens` becomes several, one after the other, of the same group.

    Many models put a very large activation on position 0, whatever stands there, which outweighs all others in
    variances and correlations; `drop_first` leaves it out.

    Args:
        dataset (`Iterable`): Rows, such as those of a [`~datasets.Dataset`] or [`~datasets.IterableDataset`], or texts.
            Their places are the documents' groups. Rows without text are passed over.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's tokenizer.
        column (`str`, *optional*, defaults to `"text"`): The rows' column that holds the text.
        max_tokens (`int`, *optional*, defaults to `1024`): Most tokens of a document.
        bos (`bool`, *optional*): Whether each document begins with the tokenizer's beginning-of-sequence token. By
            default as the tokenizer does it. Dictionaries are best read as they were trained: those of GPT-2
            (`gpt2-small-res-jb`) with it, though its tokenizer adds none.
        drop_first (`bool`, *optional*, defaults to `False`): Whether position 0 is read, but not kept.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If a row has no such column or no text in it, or the tokenizer has no
            beginning-of-sequence token.
    """
    _check_positive("max_tokens", max_tokens)
    token = tokenizer.bos_token_id
    if bos is None:
        bos = token is not None and tokenizer.encode("a")[:1] == [token]
    if bos and token is None:
        raise UsageError("bos=True, but the tokenizer has no beginning-of-sequence token; use bos=False")
    opening = (cast("int", token),) if bos else ()
    if max_tokens <= len(opening):
        raise UsageError(f"max_tokens={max_tokens} leaves no room for text after the beginning-of-sequence token")
    return _of_texts(dataset, tokenizer, column, max_tokens - len(opening), opening, int(drop_first))


def _of_texts(
    dataset: Iterable[Mapping[str, Any] | str],
    tokenizer: PreTrainedTokenizerBase,
    column: str,
    room: int,
    opening: tuple[int, ...],
    start: int,
) -> Iterator[Document]:
    texts = ((group, text_of(row, column, group)) for group, row in enumerate(dataset))
    full = ((group, text) for group, text in texts if text)
    while part := list(islice(full, _TEXTS)):
        encoded = tokenizer(
            [text for _, text in part],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for (group, _), ids in zip(part, cast("list[list[int]]", encoded["input_ids"]), strict=True):
            for first in range(0, len(ids), room):
                yield Document((*opening, *ids[first : first + room]), group, start)


def text_of(row: Mapping[str, Any] | str, column: str, place: int) -> str | None:
    """The text of a row of a dataset; `place` is its number.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is no such column, or it holds something else.
    """
    if isinstance(row, str):
        return row
    if column not in row:
        columns = ", ".join(map(str, row)) or "none"
        raise UsageError(
            f"column={column!r}, but row {place} has the columns {columns}{did_you_mean(column, map(str, row))}"
        )
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise UsageError(f"column={column!r} of row {place} holds {type(text).__name__}, not a text")
    return text


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"{name}={value}, but it must be at least 1")


class DocumentsTable:
    """Gathers what a store keeps of its documents, and writes it as [`TABLE`]."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def add(self, document: Document) -> int:
        """Adds a document and answers its number."""
        number = len(self.rows)
        reply = -1 if document.reply is None else document.reply
        self.rows.append(
            (
                number,
                document.group,
                document.step,
                document.player,
                document.turn,
                document.start,
                reply,
                len(document.ids),
                document.cut,
            )
        )
        return number

    def write(self, folder: str | Path) -> None:
        """Writes the table whole or not at all."""
        import pyarrow as pa
        from pyarrow import parquet

        values = np.array(self.rows, dtype=np.int32).reshape(-1, len(COLUMNS))
        table = pa.table({name: values[:, place] for place, name in enumerate(COLUMNS)})
        with written_whole(Path(folder) / TABLE) as partial:
            parquet.write_table(table, partial)


def open_documents(folder: str | Path) -> dict[str, np.ndarray]:
    """The documents of a store, as columns: the row is the number that the store's tokens have as `document`.

    A token's `group` is the place of its episode, and `step` of its document the step in it. The reply of that step is
    decided at position `reply - 1` of the document.

    Args:
        folder (`str` or `Path`): The store.

    Returns:
        `dict[str, np.ndarray]`: For each of [`COLUMNS`], `(documents,)` int32; see [`Document`]. `length` is the number
        of tokens read; -1 stands for none.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is no such table, or it cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(folder) / TABLE
    if not path.is_file():
        raise UsageError(f"{folder} has no {TABLE}: its collection was not finished; run it again to go on")
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UsageError(f"{path} cannot be read: it lacks the columns {', '.join(missing)}")
    return {name: table[name].to_numpy() for name in COLUMNS}
