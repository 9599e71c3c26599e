"""The text of single tokens, such that the pieces of a text read as the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CUT = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """Texts of tokens, each as it reads behind another.

    A token is decoded behind a plain word, whose text is then taken off: so a piece has its leading space with
    byte-level BPE, with sentencepiece and with word-level tokenizers alike. Tokens that are parts of one character are
    decoded together.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The model's. Without one a token's text is its
            number.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None):
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._anchor: list[int] = []
        self._anchor_text = ""
        if tokenizer is not None:
            self._anchor, self._anchor_text = _plain_word(tokenizer)

    @property
    def count(self) -> int | None:
        """Number of tokens that have a text. Unembeddings are often padded beyond it."""
        return None if self._tokenizer is None else len(self._tokenizer)

    def of(self, token: int) -> str:
        """Text of one token. What is only part of a character is shown as U+FFFD."""
        if token not in self._known:
            self._known[token] = self._joined([token]) or f"<{token}>"
        return self._known[token]

    def split(self, tokens: Sequence[int], peak: int | None = None) -> list[str]:
        """Texts of consecutive tokens, as many as there are tokens.

        Where several make up one character, it stands at the token `peak` if that is one of them, else at the first; the
        others are empty.

        Args:
            tokens (`Sequence[int]`): Ids.
            peak (`int`, *optional*): Place of the token that must not be empty.
        """
        texts = [self.of(token) for token in tokens]
        start = 0
        while start < len(texts):
            stop = start + 1
            if _CUT in texts[start]:
                # A character of UTF-8 has four bytes at most
                for end in range(start + 2, min(start + 4, len(texts)) + 1):
                    if _CUT not in texts[end - 1]:
                        break
                    whole = self._joined(tokens[start:end])
                    if whole and _CUT not in whole:
                        stop = end
                        shown = peak if peak is not None and start <= peak < end else start
                        texts[start:end] = [whole if at == shown else "" for at in range(start, end)]
                        break
            start = stop
        return texts

    def _joined(self, tokens: Sequence[int]) -> str:
        if self._tokenizer is None:
            return "".join(f"<{token}>" for token in tokens)
        text = _decode(self._tokenizer, [*self._anchor, *tokens])
        if text.startswith(self._anchor_text):
            return text[len(self._anchor_text) :]
        return _decode(self._tokenizer, tokens)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    try:
        text = tokenizer.decode(list(map(int, tokens)), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    except (IndexError, KeyError, OverflowError, TypeError):
        # Slow tokenizers: a number beyond the vocabulary
        return ""
    return text if isinstance(text, str) else text[0]


def _plain_word(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], str]:
    """A token of letters, and its text; none where the vocabulary has none."""
    special = set(tokenizer.all_special_ids)
    for token in range(len(tokenizer)):
        text = _decode(tokenizer, [token])
        if token not in special and text.isascii() and text.isalpha():
            return [token], text
    return [], ""
