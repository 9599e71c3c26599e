"""Language models that only play: loaded from a folder or the Hub, with their own sampling settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import did_you_mean
from .prompts import find_prompt_template


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .language_model import LanguageModelPlayer

DTYPES = ("auto", "float32", "bfloat16", "float16")
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class ModelSettings:
    """How a language model that plays is loaded and sampled.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `256`): Longest reply in tokens; never more than half of the
            positions that the model has, so that a prompt fits too.
        temperature (`float`, *optional*, defaults to `1.0`), top_p (`float`, *optional*, defaults to `1.0`),
        top_k (`int`, *optional*, defaults to `0`): Sampling, with the meaning of [`~transformers.GenerationConfig`].
        prompt_template (`str`, *optional*, defaults to `"chat"`): How turns are written as prompts: `chat` is the
            tokenizer's chat template; see [`~spiral_trl.players.prompts.PromptTemplate`].
        chat_template_kwargs (`Mapping`, *optional*): Passed to `apply_chat_template`, such as
            `{"enable_thinking": False}`.
        max_rows (`int`, *optional*, defaults to `512`): Most rows in one forward pass.
        device (`str`, *optional*): Such as `cpu` or `cuda:1`. By default the GPU if there is one.
        dtype (`str`, *optional*, defaults to `"auto"`): One of [`DTYPES`]; `auto` is that of the saved weights.
        revision (`str`, *optional*): Branch, tag or commit of a model on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code that comes with the model may run.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    prompt_template: str = "chat"
    chat_template_kwargs: Mapping[str, Any] | None = None
    max_rows: int = 512
    device: str | None = None
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, low in (("max_new_tokens", 1), ("top_k", 0), ("max_rows", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} of a model must be at least {low}, not {getattr(self, name)}")
        # A comparison with NaN is false, so NaN is refused too
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature of a model must be above 0, not {self.temperature}; top_k=1 is greedy")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p of a model must be above 0 and at most 1, not {self.top_p}")
        find_prompt_template(self.prompt_template)
        if self.dtype not in DTYPES:
            raise ValueError(
                f"dtype of a model must be one of {', '.join(DTYPES)}, not {self.dtype!r}"
                f"{did_you_mean(self.dtype, DTYPES)}"
            )
        if self.device is not None and not re.fullmatch(r"cpu|mps|cuda(:[0-9]+)?", self.device):
            raise ValueError(f"device of a model must be cpu, mps, cuda or such as cuda:1, not {self.device!r}")


def model_name(path: str) -> str:
    """How a model is called in records and tables: the last part of a folder's path, or the id on the Hub."""
    folder = _folder(path)
    return folder.resolve().name if folder.is_dir() else path


def check_model(path: str) -> None:
    """Everything that can be known to be wrong with a model without loading it or asking the Hub.

    Args:
        path (`str`): A folder, with a whole model or a PEFT adapter, or an id on the Hub.

    Raises:
        `ValueError`: If there is no such folder, it holds no model, or it needs a library that is not installed.
    """
    folder = _folder(path)
    if not folder.is_dir():
        if folder.is_file():
            raise ValueError(f"{path} is a file; name the folder of a model.")
        if path.startswith((".", "/", "~", os.sep)) or path.count("/") > 1 or os.sep in path.replace("/", ""):
            raise ValueError(f"The model folder {path} does not exist{_near(folder) or '.'}")
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(path)
        except HFValidationError as error:
            raise ValueError(f"{path!r} is no folder and no id on the Hub: {error}") from None
        return
    names = {item.name for item in folder.iterdir()}
    adapter = "adapter_config.json" in names
    if adapter:
        _check_adapter(path, folder)
    elif "config.json" not in names:
        # Of checkpoint-9 and checkpoint-10 the latter
        inside = sorted(
            (item.parent.name for item in folder.glob("*/config.json")), key=lambda name: (len(name), name)
        )
        hint = f"; did you mean {Path(path) / inside[-1]}?" if inside else ""
        raise ValueError(f"{path} holds no model: there is no config.json and no adapter_config.json{hint}")
    if not any(name.endswith(_WEIGHTS) for name in names):
        raise ValueError(f"{path} holds no weights: there is no model.safetensors, nor another file of weights")
    if not adapter and not any(name.startswith(("tokenizer", "vocab")) for name in names):
        raise ValueError(f"{path} holds no tokenizer; save it there with tokenizer.save_pretrained")


def _check_adapter(path: str, folder: Path) -> None:
    if find_spec("peft") is None:
        raise ValueError(f"{path} holds an adapter, and peft is not installed; install spiral-trl[peft].")
    base = _adapter_base(path, folder)
    try:
        check_model(base)
    except ValueError as error:
        raise ValueError(f"{path} holds an adapter of another model: {error}") from None


def _adapter_base(path: str, folder: Path) -> str:
    """The model that an adapter was trained on."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path} holds an adapter whose adapter_config.json names no base_model_name_or_path")
    return base


def _folder(path: str) -> Path:
    return Path(os.path.expanduser(path))


def _near(folder: Path) -> str:
    """The folder beside a missing one that has nearly its name."""
    try:
        beside = [item.name for item in folder.parent.iterdir() if item.is_dir()]
    except OSError:
        return ""
    return did_you_mean(folder.name, beside)


def load_config(path: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a model, for an adapter that of the model it was trained on, without its weights.

    Args:
        path (`str`): A folder, with a whole model or a PEFT adapter, or an id on the Hub.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Raises:
        `ValueError`: If there is none, or it cannot be read.
    """
    check_model(path)

    from transformers import AutoConfig

    folder = _folder(path)
    if folder.is_dir() and (folder / "adapter_config.json").is_file():
        return load_config(_adapter_base(path, folder))
    where = {} if revision is None or folder.is_dir() else {"revision": revision}
    try:
        return AutoConfig.from_pretrained(str(folder) if folder.is_dir() else path, **where)
    except (OSError, ValueError) as error:
        raise ValueError(f"The model {path} cannot be loaded: {' '.join(str(error).split())}") from error


def load_causal_lm(
    path: str, settings: ModelSettings | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model that is not trained, in evaluation mode, and its tokenizer.

    Args:
        path (`str`): A folder, with a whole model or a PEFT adapter, or an id on the Hub.
        settings ([`ModelSettings`], *optional*): How it is loaded.

    Raises:
        `ValueError`: If it cannot be loaded, or lacks weights.
    """
    settings = settings or ModelSettings()
    check_model(path)

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device}, but no GPU can be used here; leave device out, or set device=cpu")
    folder = _folder(path)
    local = folder.is_dir()
    source = str(folder) if local else path
    tokenizer_source = source
    if local and not any(item.name.startswith("tokenizer") for item in folder.iterdir()):
        tokenizer_source = _adapter_base(path, folder) if (folder / "adapter_config.json").is_file() else source
    where = {"revision": settings.revision} if settings.revision is not None and not local else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_source, trust_remote_code=settings.trust_remote_code, **where
        )
        answer: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
            output_loading_info=True,
            **where,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        near = "" if local else f"; nor is there a folder {path} here{_near(folder)}"
        raise ValueError(f"The model {path} cannot be loaded: {reason}{near}") from error
    model, loaded = answer
    missing = sorted(loaded["missing_keys"])
    if missing:
        # Loading fills them with random numbers and goes on
        raise ValueError(f"The model {path} lacks {len(missing)} weights, such as {missing[0]}.")
    model.to(torch.device(device))
    model.eval()
    return model, tokenizer


def load_model_player(
    path: str, settings: ModelSettings | None = None, name: str | None = None
) -> LanguageModelPlayer:
    """A causal language model that plays and is not trained.

    Args:
        path (`str`): A folder, with a whole model or a PEFT adapter, or an id on the Hub.
        settings ([`ModelSettings`], *optional*): How it is loaded and sampled.
        name (`str`, *optional*): What it is called in records; by default [`model_name`].

    Raises:
        `ValueError`: If it cannot be loaded, lacks weights, or its tokenizer has no chat template.
    """
    from .language_model import LanguageModelPlayer

    settings = settings or ModelSettings()
    model, tokenizer = load_causal_lm(path, settings)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return LanguageModelPlayer(
        model,
        tokenizer,
        name=name or model_name(path),
        max_new_tokens=min(settings.max_new_tokens, positions // 2) if positions else settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        chat_template_kwargs=settings.chat_template_kwargs,
        prompt_template=settings.prompt_template,
        max_rows=settings.max_rows,
    )
