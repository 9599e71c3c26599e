r"""How a turn is written for a model: prompt templates.

`chat` is the tokenizer's own chat template and leaves the observation as it is. The others are what models of the
SPIRAL paper need (arXiv 2506.24119): each brings a chat template, so that a base model without one can play, and adds
to the observation that this is a zero-sum game, and the request to reason and to put the answer in `\boxed{}`.

A template opens reasoning where the prompt ends with `<think>`. The reply then starts inside it, and
[`~spiral_trl.players.language_model.LanguageModelPlayer`] puts the tag before the text that the game reads: reasoning
that is never closed is illegal wherever it was opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..names import unknown


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STATEMENT = (
    "You play a zero-sum game of two players: whatever one of you wins, the other loses. Read the position below and "
    "choose the legal action that is best for you."
)
_REQUEST = "Reason step by step. Then give your final answer, the action alone, within \\boxed{}."


def _chat_template(opening: str, system: str, user: str, assistant: str, prompt: str) -> str:
    """A chat template of which each user message is framed by the statement and the request.

    Args:
        opening (`str`): Before all messages.
        system (`str`): A system message; `{}` stands for its content.
        user (`str`): A user message; `{}` stands for the statement, the content and the request.
        assistant (`str`): A reply of earlier turns; `{}` stands for its content.
        prompt (`str`): What opens the reply.
    """
    content = "{{ message.content }}"
    framed = f"{_STATEMENT}\n\n{content}\n\n{_REQUEST}"
    return (
        f"{opening}{{% for message in messages %}}"
        f"{{% if message.role == 'system' %}}{system.replace('{}', content)}"
        f"{{% elif message.role == 'assistant' %}}{assistant.replace('{}', content)}"
        f"{{% else %}}{user.replace('{}', framed)}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )


@dataclass(frozen=True)
class PromptTemplate:
    """How the messages of a turn become the text that is tokenised.

    Args:
        name (`str`): What it is called in configurations.
        chat_template (`str`, *optional*): Chat template in Jinja. `None`: the tokenizer's own.
        markers (`tuple[str, ...]`, *optional*): What stands around messages. Each must be a token of the tokenizer, or
            the template is another model's.
        end_of_turn (`str`, *optional*): The marker that ends a reply, beside the tokens that do so anyway.
    """

    name: str
    chat_template: str | None = None
    markers: tuple[str, ...] = ()
    end_of_turn: str | None = None

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuses a tokenizer that the template cannot be used with.

        Raises:
            `ValueError`: If the tokenizer has no chat template and this one brings none, or lacks a marker.
        """
        whose = tokenizer.name_or_path or "the model"
        if self.chat_template is None and not tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer of {whose} has no chat template, so turns cannot be written for it. Set "
                f"tokenizer.chat_template, choose a prompt_template ({', '.join(list(PROMPT_TEMPLATES)[1:])}), or copy "
                "one with trl.clone_chat_template(model, tokenizer, 'Qwen/Qwen3-0.6B')."
            )
        vocabulary = tokenizer.get_vocab() if self.markers else {}
        missing = [marker for marker in self.markers if marker not in vocabulary]
        if missing:
            raise ValueError(
                f"prompt_template={self.name!r} is not for the tokenizer of {whose}, which has no token "
                f"{' and no '.join(missing)}. Choose another of {', '.join(PROMPT_TEMPLATES)}."
            )

    def arguments(self) -> dict[str, Any]:
        """What `apply_chat_template` is given."""
        return {} if self.chat_template is None else {"chat_template": self.chat_template}

    def eos_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """Tokens that end a reply because the template says so."""
        return frozenset() if self.end_of_turn is None else frozenset({tokenizer.get_vocab()[self.end_of_turn]})

    def opened_reasoning(self, tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> str:
        r"""What of a reply's reasoning stands in the prompt: `<think>\n`, or nothing.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
            kwargs: Given to `apply_chat_template`, such as `enable_thinking=False`.
        """
        probe = [{"role": "user", "content": "."}]
        text = tokenizer.apply_chat_template(
            probe, tokenize=False, add_generation_prompt=True, **{**kwargs, **self.arguments()}
        )
        return "<think>\n" if str(text).rstrip().endswith("<think>") else ""


PROMPT_TEMPLATES = {
    template.name: template
    for template in (
        PromptTemplate("chat"),
        PromptTemplate(
            "qwen3_base",
            _chat_template(
                opening="",
                system="<|im_start|>system\n{}<|im_end|>\n",
                user="<|im_start|>user\n{}<|im_end|>\n",
                assistant="<|im_start|>assistant\n{}<|im_end|>\n",
                prompt="<|im_start|>assistant\n",
            ),
            markers=("<|im_start|>", "<|im_end|>"),
            end_of_turn="<|im_end|>",
        ),
        PromptTemplate(
            "r1_distill",
            _chat_template(
                opening="{{ bos_token }}",
                system="{}",
                user="<｜User｜>{}",
                assistant="<｜Assistant｜>{}<｜end▁of▁sentence｜>",
                prompt="<｜Assistant｜><think>\n",
            ),
            markers=("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
            end_of_turn="<｜end▁of▁sentence｜>",
        ),
        PromptTemplate(
            "llama_instruct",
            _chat_template(
                opening="{{ bos_token }}",
                system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
                user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
                assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
                prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            markers=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            end_of_turn="<|eot_id|>",
        ),
    )
}


def find_prompt_template(template: str | PromptTemplate) -> PromptTemplate:
    """A template by its name; a template itself is answered as it is.

    Raises:
        `ValueError`: If there is none of this name.
    """
    if isinstance(template, PromptTemplate):
        return template
    if template not in PROMPT_TEMPLATES:
        raise unknown("prompt_template", str(template), PROMPT_TEMPLATES)
    return PROMPT_TEMPLATES[template]
