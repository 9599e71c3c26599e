"""A Hugging Face causal language model as a player: prompt template in, sampled reply out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ..errors import did_you_mean
from ..games.chance import REPLY, uniforms
from ..prefix_sharing import left_padded, position_ids, sample_distinct
from ..records import Reply, Turn
from .prompts import PromptTemplate, find_prompt_template


if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

# Takes token ids of prompts, with repetitions, and answers completions and log-probabilities: an engine such as vLLM.
Engine = Callable[[list[list[int]]], tuple[list[list[int]], list[list[float]] | None]]


class LanguageModelPlayer:
    """Answers turns with a causal language model.

    Replies of the built-in sampler derive from the seed of the game, the index of the turn and the position of the
    token alone (by inversion of the distribution), so that they do not depend on what is generated beside them.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. May be exchanged between calls by the context `unwrap`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, with a chat template unless `prompt_template` brings one.
        name (`str`, *optional*, defaults to `"model"`):
            What the player is called in records.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest reply in tokens.
        temperature (`float`, *optional*, defaults to `1.0`), top_p (`float`, *optional*, defaults to `1.0`),
        top_k (`int`, *optional*, defaults to `0`), min_p (`float`, *optional*),
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Sampling, with the meaning of [`~transformers.GenerationConfig`].
        eos_token_ids (`Sequence[int]`, *optional*):
            Tokens that end a reply. By default those of the generation config and the tokenizer. The prompt template's
            own is always added.
        generation_kwargs (`Mapping`, *optional*):
            More fields of [`~transformers.GenerationConfig`] that act on logits, such as `bad_words_ids`: see
            [`GENERATION_KWARGS`]. With an engine, which reads them itself, none is looked at here.
        chat_template_kwargs (`Mapping`, *optional*):
            Passed to `apply_chat_template`, such as `{"enable_thinking": False}`.
        prompt_template (`str` or [`~spiral_trl.players.prompts.PromptTemplate`], *optional*, defaults to `"chat"`):
            How turns are written: `"chat"` (the tokenizer's chat template), `"qwen3_base"`, `"r1_distill"` or
            `"llama_instruct"`. Where the prompt ends with `<think>`, replies' text starts with it.
        max_rows (`int`, *optional*, defaults to `512`):
            Most rows in one forward pass.
        unwrap (`Callable`, *optional*):
            Context manager that yields the model to generate with (a trainer's unwrapped model).
        engine (`Callable`, *optional*):
            Generates instead of the built-in sampler (vLLM).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "model",
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        eos_token_ids: Sequence[int] | None = None,
        generation_kwargs: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        prompt_template: str | PromptTemplate = "chat",
        max_rows: int = 512,
        unwrap: Callable[[], AbstractContextManager[PreTrainedModel]] | None = None,
        engine: Engine | None = None,
    ):
        template = find_prompt_template(prompt_template)
        template.check(tokenizer)
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.max_rows = max_rows
        self.policy_version: int | None = None
        self.unwrap = unwrap or (lambda: nullcontext(model))
        self.engine = engine
        # An engine computes every reply by itself, so that one which may never be used costs as much as any other
        self.speculative = engine is None
        self.chat_template_kwargs = {**(chat_template_kwargs or {}), **template.arguments()}
        self._opened = template.opened_reasoning(tokenizer, **self.chat_template_kwargs)
        if eos_token_ids is None:
            eos_token_ids = default_eos_token_ids(model, tokenizer)
        self.eos_token_ids = frozenset(eos_token_ids) | template.eos_token_ids(tokenizer)
        self.vocab_size = model.config.get_text_config().vocab_size
        self.max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.eos_token_ids)
        self._generation_config = self._sampling_config(min_p, repetition_penalty, generation_kwargs or {})
        # Whether replies are drawn from the model's own distribution, so that `next_token_probs` tells their probability
        self.plain_sampling = self._generation_config is None
        self._prompts: dict[tuple, tuple[int, ...]] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    def _sampling_config(
        self, min_p: float | None, repetition_penalty: float, kwargs: Mapping[str, Any]
    ) -> GenerationConfig | None:
        """The generation config whose logits processors apply, or `None` where plain sampling needs none."""
        from transformers import GenerationConfig

        unsupported = sorted(set(kwargs) - GENERATION_KWARGS) if self.engine is None else []
        if unsupported:
            raise ValueError(
                f"generation_kwargs: {', '.join(unsupported)} cannot be used in self-play generation, where each reply "
                f"is one sample from the policy. Allowed: {', '.join(sorted(GENERATION_KWARGS))}"
                f"{did_you_mean(unsupported[0], GENERATION_KWARGS)}"
            )
        plain = self.temperature == 1.0 and self.top_p == 1.0 and not self.top_k and not min_p
        if plain and repetition_penalty == 1.0 and not kwargs:
            return None
        fields = {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "max_new_tokens": self.max_new_tokens,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": sorted(self.eos_token_ids),
        }
        config = GenerationConfig(**{**fields, **(kwargs if self.engine is None else {})})
        # What `generate` derives before it makes its processors, some of which need it
        config._eos_token_tensor = torch.tensor(sorted(self.eos_token_ids))
        return config

    def prompt_ids(self, turn: Turn) -> tuple[int, ...]:
        """Token ids of the turn's chat, with the prompt for the reply. Remembered: small games ask few prompts."""
        key = tuple((message["role"], message["content"]) for message in turn.messages)
        if key not in self._prompts:
            if len(self._prompts) > 10_000:
                self._prompts.clear()
            ids = self.tokenizer.apply_chat_template(
                cast("list[dict[str, str]]", list(turn.messages)),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **self.chat_template_kwargs,
            )
            if self.max_length is not None and len(ids) + self.max_new_tokens > self.max_length:
                raise ValueError(
                    f"A prompt of {turn.game} has {len(ids)} tokens, and with {self.max_new_tokens} for the reply "
                    f"passes the model's {self.max_length} positions. Lower max_completion_length (max_new_tokens "
                    "of a player by name), or play a game with shorter observations."
                )
            self._prompts[key] = tuple(cast("list[int]", ids))
        return self._prompts[key]

    def decode(self, completion_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens skipped, after the `<think>` that its prompt opened. Remembered: short
        replies coincide."""
        key = tuple(completion_ids)
        if key not in self._texts:
            if len(self._texts) > 100_000:
                self._texts.clear()
            text = cast("str", self.tokenizer.decode(list(key), skip_special_tokens=True))
            self._texts[key] = self._opened + text
        return self._texts[key]

    @torch.no_grad()
    def next_token_probs(self, prefixes: Sequence[Sequence[int]]) -> np.ndarray:
        """`[n, V]` next-token probabilities (float64) after each prefix, at the player's temperature."""
        rows = []
        with self.unwrap() as model, evaluating(model):
            for start in range(0, len(prefixes), self.max_rows):
                part = prefixes[start : start + self.max_rows]
                ids, mask = left_padded(part, self.pad_token_id, model.device)
                logits = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=position_ids(mask),
                    use_cache=False,
                    logits_to_keep=1,
                ).logits[:, -1]
                rows.append(torch.softmax(logits.double() / self.temperature, dim=-1).cpu().numpy())
        return np.concatenate(rows)

    def reply(self, turns: Sequence[Turn]) -> list[Reply]:
        """One reply for each turn; equal prompts are computed once."""
        distinct: dict[tuple[int, ...], int] = {}
        first: list[Turn] = []
        which = np.empty(len(turns), dtype=np.int64)
        for i, turn in enumerate(turns):
            ids = self.prompt_ids(turn)
            if ids not in distinct:
                distinct[ids] = len(first)
                first.append(turn)
            which[i] = distinct[ids]
        seeds = np.array([turn.seed for turn in turns], dtype=np.int64)
        index = np.array([turn.index for turn in turns], dtype=np.int64)
        replies, of = self.sample(first, which, seeds, index)
        return [replies[i] for i in of]

    def sample(
        self, turns: Sequence[Turn], which: np.ndarray, seeds: np.ndarray, index: np.ndarray
    ) -> tuple[list[Reply], np.ndarray]:
        prompts = [self.prompt_ids(turn) for turn in turns]
        if self.engine is not None:
            return self._sample_by_engine(prompts, which)

        def draw(samples: np.ndarray, position: int) -> np.ndarray:
            return uniforms(seeds[samples], REPLY, index[samples], position)

        with self.unwrap() as model, evaluating(model):
            completions = sample_distinct(
                model,
                prompts,
                which,
                draw,
                max_new_tokens=self.max_new_tokens,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self.pad_token_id,
                process_logits=self._logits_processor(model),
                max_rows=self.max_rows,
            )
        replies = [
            self._make_reply(prompts[prompt], ids, logprobs)
            for prompt, ids, logprobs in zip(
                completions.prompt, completions.token_ids, completions.logprobs, strict=True
            )
        ]
        return replies, completions.completion

    def _sample_by_engine(
        self, prompts: Sequence[tuple[int, ...]], which: np.ndarray
    ) -> tuple[list[Reply], np.ndarray]:
        assert self.engine is not None
        completion_ids, logprobs = self.engine([list(prompts[i]) for i in which])
        replies = []
        for i, ids in enumerate(completion_ids):
            replies.append(self._make_reply(prompts[which[i]], tuple(ids), tuple(logprobs[i]) if logprobs else None))
        return replies, np.arange(len(which))

    def _make_reply(
        self, prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...], logprobs: tuple[float, ...] | None
    ) -> Reply:
        ended = bool(completion_ids) and completion_ids[-1] in self.eos_token_ids
        return Reply(
            text=self.decode(completion_ids),
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            logprobs=logprobs,
            finish_reason="stop" if ended else "length",
            policy_version=self.policy_version,
        )

    def _logits_processor(
        self, model: PreTrainedModel
    ) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
        if self._generation_config is None:
            return None
        config = self._generation_config

        def process(input_ids: torch.Tensor, mask: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            processors = cast("Any", model)._get_logits_processor(  # the one way to all of `generate`'s processors
                generation_config=config,
                input_ids_seq_length=input_ids.size(1),
                device=input_ids.device,
                model_kwargs={"attention_mask": mask},
            )
            # Padding must look like no token: penalties would fall on one, perhaps the one that ends replies
            return processors(input_ids.masked_fill(mask == 0, logits.size(1)), logits)

        return process


# Fields of the generation config that change the distribution of the next token given those before it. The others
# change what a sample is, have a field of their own in the trainer's config, or need what only `generate` knows.
GENERATION_KWARGS = frozenset(
    {
        "bad_words_ids",
        "epsilon_cutoff",
        "eta_cutoff",
        "no_repeat_ngram_size",
        "remove_invalid_values",
        "renormalize_logits",
        "sequence_bias",
        "suppress_tokens",
        "top_h",
        "typical_p",
    }
)


class evaluating:
    """Puts a model into evaluation mode for a while, and back into the mode it was in."""

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def __enter__(self) -> None:
        self.was_training = self.model.training
        if self.was_training:
            self.model.eval()

    def __exit__(self, *exc: object) -> None:
        if self.was_training:
            self.model.train()


def default_eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a reply: those of the generation config and the tokenizer's own."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.insert(0, tokenizer.eos_token_id)
    if not ids:
        raise ValueError("The tokenizer and the generation config name no end-of-sequence token. Set eos_token.")
    return ids


def check_chat_template(tokenizer: PreTrainedTokenizerBase, prompt_template: str | PromptTemplate = "chat") -> None:
    """Refuses a tokenizer that a prompt template cannot be used with, such as one without a chat template."""
    find_prompt_template(prompt_template).check(tokenizer)
