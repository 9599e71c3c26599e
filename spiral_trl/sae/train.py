"""Training of dictionaries with SAELens: all layers in one pass over the model.

1. Documents are read by the model in blocks of `buffer_tokens` tokens; the residual streams of all wanted layers stay in
   memory, the tokens of a block are shuffled, and every layer's trainer takes the same batches.
2. When the documents are through, they are read again, until `tokens` tokens have been trained on. Documents that fit in
   one block are read once.
3. Streams are scaled so that the mean norm of the first block is the root of the width, and the decoder's bias begins at
   that block's mean; the scale is folded into the weights at the end.

Every `checkpoint_steps` steps the state of all trainers is written, as safetensors and JSON. A run that was stopped goes
on from there and ends as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..players.language_model import evaluating
from .activations import check_layers, hook_name, num_layers
from .blocks import Block, Place, blocks
from .collect import model_fingerprint
from .dictionaries import load_dictionary
from .extra import require_extra
from .quality import Reconstruction
from .store import write_json
from .trainers import (
    PENALISED,
    begin_at,
    check_options,
    finish,
    load_state,
    make_trainer,
    save_state,
    set_threshold,
)


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .documents import Document

RECORD, CHECKPOINT, STATE = "training.json", "checkpoint", "state.json"
# Bytes of the streams that one block holds where `buffer_tokens` does not say
_BUFFER = 1 << 30
# Padded tokens that the model reads at once
_MODEL_TOKENS = 16_384


@dataclass(frozen=True)
class TrainSettings:
    """What decides how dictionaries come out; see [`train_dictionaries`]."""

    model_name: str
    model_fingerprint: str
    others: tuple[str, ...]
    layers: tuple[int, ...]
    num_features: int
    architecture: str
    active: int | None
    tokens: int
    batch_tokens: int
    buffer_tokens: int
    learning_rate: float
    seed: int
    options: Mapping[str, Any]
    source: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """About how many: batches are of nearly `batch_tokens` tokens."""
        return max(1, self.tokens // self.batch_tokens)


@dataclass(frozen=True)
class Trained:
    """Dictionaries that were trained.

    Args:
        folder (`Path`): Where they lie: `layer_00/`, ...; a name for [`~spiral_trl.sae.dictionaries.load_dictionaries`].
        settings (`dict`): Fields of [`TrainSettings`].
        tokens, steps (`int`): What they were trained on, repetitions counted.
        layers (`dict`): For each layer, as text, `unexplained_variance`, `l0` and `dead` of the dictionary as it is
            loaded again, over the last block of tokens.
    """

    folder: Path
    settings: dict[str, Any]
    tokens: int
    steps: int
    layers: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "folder"}


def train_dictionaries(
    model: PreTrainedModel,
    documents: Iterable[Document],
    folder: str | Path,
    *,
    model_name: str,
    layers: Collection[int] | None = None,
    num_features: int | None = None,
    architecture: str = "topk",
    active: int | None = None,
    tokens: int = 10_000_000,
    batch_tokens: int = 4096,
    buffer_tokens: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    checkpoint_steps: int = 1000,
    resume: bool = True,
    others: Sequence[PreTrainedModel] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> Trained:
    """Trains one dictionary for each layer, and saves them in SAELens's format.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model, on the device to train on.
        documents (`Iterable[Document]`): What it reads; one that can be read again, such as a list, unless its tokens
            are enough.
        folder (`str` or `Path`): Where the dictionaries go.
        model_name (`str`): What the model is called in them.
        layers (`Collection[int]`, *optional*): The layers; by default all of the model.
        num_features (`int`, *optional*): Features of each dictionary; by default 8 times the width.
        architecture (`str`, *optional*, defaults to `"topk"`): One of [`~spiral_trl.sae.trainers.ARCHITECTURES`]. Those by batches (`batchtopk`,
            `matryoshka_batchtopk`) are saved as `jumprelu`, with the threshold at which the last tokens have `active`
            features on average.
        active (`int`, *optional*): Features active for a token; by default an eighth of the width, at most 32. Not for
            `standard` and `gated`, whose option `l1_coefficient` sets it.
        tokens (`int`, *optional*, defaults to `10_000_000`): Tokens to train on. Documents are repeated until then.
        batch_tokens (`int`, *optional*, defaults to `4096`): Tokens of a step.
        buffer_tokens (`int`, *optional*): Tokens that are read and shuffled at once; by default what 1 GiB holds.
        learning_rate (`float`, *optional*): Of Adam; by default `2e-4 / sqrt(num_features / 16384)` (arXiv 2406.04093).
            It rises for the first 20th of the steps and falls to 0 over the last 5th.
        seed (`int`, *optional*, defaults to `0`): Of weights and shuffling.
        options (`Mapping`, *optional*): More fields of SAELens's configurations of the architecture's training and of
            `SAETrainerConfig`.
        source (`Mapping`, *optional*): Where the documents come from, to be kept with the dictionaries.
        checkpoint_steps (`int`, *optional*, defaults to `1000`): Steps between checkpoints; 0 writes none.
        resume (`bool`, *optional*, defaults to `True`): Whether to go on from a checkpoint in the folder, or to answer
            with what was trained there, where the settings and the model's weights are the same.
        others (`Sequence[PreTrainedModel]`, *optional*): Models of the same shape, such as the same model after training,
            whose streams on the same documents are trained on too, each as much as the first one's.
        progress (`Callable`, *optional*): Called after each step with tokens, all tokens, and the state of training.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If an argument cannot be used, the documents run out, or the folder holds
            dictionaries of other settings.
    """
    require_extra()
    settings = _settings(
        model,
        others,
        model_name=model_name,
        layers=layers,
        num_features=num_features,
        architecture=architecture,
        active=active,
        tokens=tokens,
        batch_tokens=batch_tokens,
        buffer_tokens=buffer_tokens,
        learning_rate=learning_rate,
        seed=seed,
        options=dict(options or {}),
        source=dict(source or {}),
    )
    folder = Path(folder)
    said = json.loads(json.dumps(asdict(settings)))
    if resume and (done := _read(folder / RECORD, said)) is not None:
        return Trained(folder, said, done["tokens"], done["steps"], done["layers"])
    run = _Run((model, *others), settings, folder)
    if resume and (newest := max((folder / CHECKPOINT).glob("*"), default=None)) is not None:
        run.load(newest, said)
    elif (folder / CHECKPOINT).exists():
        shutil.rmtree(folder / CHECKPOINT)
    with ExitStack() as stack:
        for one in run.models:
            stack.enter_context(evaluating(one))
        last = run.train(documents, checkpoint_steps, progress, said)
    trained = Trained(folder, said, run.tokens, run.step, run.save(last))
    write_json(folder / RECORD, trained.to_dict())
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    return trained


def _settings(
    model: PreTrainedModel,
    others: Sequence[PreTrainedModel],
    *,
    layers: Collection[int] | None,
    num_features: int | None,
    architecture: str,
    active: int | None,
    buffer_tokens: int | None,
    learning_rate: float | None,
    options: dict[str, Any],
    **plain: Any,
) -> TrainSettings:
    width = model.config.get_text_config().hidden_size
    wanted = tuple(sorted(set(range(num_layers(model)) if layers is None else layers)))
    if not wanted:
        raise UsageError("no layer was asked for")
    check_layers(model, wanted)
    for other in others:
        check_layers(other, wanted)
        if (its := other.config.get_text_config().hidden_size) != width:
            raise UsageError(f"models of one width are trained on together, not of {width} and {its}")
    check_options(architecture, options)
    num_features = 8 * width if num_features is None else num_features
    if architecture in PENALISED and active is not None:
        raise UsageError(
            f"active={active}, but features of {architecture} are made sparse by a penalty: set its option l1_coefficient"
        )
    if architecture not in PENALISED and active is None:
        active = max(1, min(32, width // 8))
    if buffer_tokens is None:
        size = next(model.parameters()).element_size()
        buffer_tokens = max(_BUFFER // (size * width * len(wanted)), 2 * plain["batch_tokens"])
    learning_rate = 2e-4 / math.sqrt(num_features / 16384) if learning_rate is None else learning_rate
    for name, value, low in (
        ("num_features", num_features, 1),
        ("active", active, 1),
        ("tokens", plain["tokens"], 1),
        ("batch_tokens", plain["batch_tokens"], 1),
        ("buffer_tokens", buffer_tokens, plain["batch_tokens"]),
    ):
        if value is not None and value < low:
            raise UsageError(f"{name}={value}, but it must be at least {low}")
    if active is not None and active > num_features:
        raise UsageError(f"active={active}, but there are {num_features} features")
    if not learning_rate > 0:
        raise UsageError(f"learning_rate={learning_rate}, but it must be above 0")
    return TrainSettings(
        model_fingerprint=model_fingerprint(model),
        others=tuple(model_fingerprint(other) for other in others),
        layers=wanted,
        num_features=num_features,
        architecture=architecture,
        active=active,
        buffer_tokens=buffer_tokens,
        learning_rate=learning_rate,
        options=options,
        **plain,
    )


def _read(path: Path, said: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a file of ours holds, if it is there and of these settings."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = found["settings"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error!r}") from None
    for name, value in said.items():
        if settings.get(name) != value:
            raise UsageError(
                f"{path.parent} is of other settings: {name} is {settings.get(name)!r} there and {value!r} here; take "
                "another folder, or do not resume"
            )
    return found


class _Run:
    def __init__(self, models: Sequence[PreTrainedModel], settings: TrainSettings, folder: Path):
        self.models, self.settings, self.folder = models, settings, folder
        self.model = model = models[0]
        self.step = self.tokens = self.batch = 0
        self.place = Place()
        # Of the block at the checkpoint, to tell whether it is the same again
        self.norms: dict[str, float] = {}
        text = model.config.get_text_config()
        self.trainers = {
            layer: make_trainer(
                architecture=settings.architecture,
                width=text.hidden_size,
                num_features=settings.num_features,
                active=settings.active,
                steps=settings.steps,
                batch_tokens=settings.batch_tokens,
                learning_rate=settings.learning_rate,
                seed=int(np.random.SeedSequence([settings.seed, layer]).generate_state(1)[0]),
                options=settings.options,
                metadata={
                    "model_name": settings.model_name,
                    "model_type": text.model_type,
                    "num_hidden_layers": text.num_hidden_layers,
                    "hook_name": hook_name(model, layer),
                    "prepend_bos": False,
                    "seed": settings.seed,
                    "source": dict(settings.source),
                },
                device=str(model.device),
            )
            for layer in settings.layers
        }

    def train(
        self,
        documents: Iterable[Document],
        checkpoint_steps: int,
        progress: Callable[[int, int, str], None] | None,
        said: Mapping[str, Any],
    ) -> Block:
        """Trains to the end, and gives the last block."""
        settings = self.settings
        size = settings.buffer_tokens // len(self.models)
        read = blocks(self.models, documents, settings.layers, size, _MODEL_TOKENS, begin=self.place)
        while True:
            block = next(read, None)
            if block is None:
                raise UsageError(
                    f"the documents ended after {self.tokens} tokens, but tokens={settings.tokens}: ask for fewer, or give "
                    "documents that can be read again, such as a list"
                )
            self._begin(block)
            for rows in self._batches(block.num_tokens)[self.batch :]:
                if self.tokens >= settings.tokens:
                    break
                missed = self._step(block, rows)
                if progress is not None:
                    progress(min(self.tokens, settings.tokens), settings.tokens, f"unexplained {missed():.3f}")
                if checkpoint_steps and self.step % checkpoint_steps == 0 and self.tokens < settings.tokens:
                    self._checkpoint(said)
            if self.tokens >= settings.tokens:
                return block
            self.place, self.batch = block.end, 0
            # Not two of them in memory
            del block

    def _begin(self, block: Block) -> None:
        norms = {str(layer): float(rows.float().norm()) for layer, rows in block.streams.items()}
        if self.batch and not all(
            math.isclose(norms[layer], norm, rel_tol=1e-3) for layer, norm in self.norms.items()
        ):
            raise UsageError(
                f"{self.folder / CHECKPOINT} was written with other documents; take another folder, or do not resume"
            )
        self.norms = norms
        if not self.step:
            for layer, trainer in self.trainers.items():
                begin_at(trainer, block.streams[layer])

    def _batches(self, count: int) -> list[np.ndarray]:
        order = np.random.default_rng([self.settings.seed, self.place.block]).permutation(count)
        return np.array_split(order, max(1, round(count / self.settings.batch_tokens)))

    def _step(self, block: Block, rows: np.ndarray) -> Callable[[], float]:
        import torch

        index = torch.from_numpy(rows).to(self.model.device)
        outputs = []
        for layer, trainer in self.trainers.items():
            trainer.maybe_reset_sparsity()
            outputs.append(trainer.step(block.streams[layer][index].float()))
            trainer.n_training_steps += 1
        self.step, self.tokens, self.batch = self.step + 1, self.tokens + len(rows), self.batch + 1

        def missed() -> float:
            shares = [
                one.losses["mse_loss"].detach() / (one.sae_in - one.sae_in.mean(0)).square().sum(-1).mean()
                for one in outputs
            ]
            return float(torch.stack(shares).mean())

        return missed

    def _checkpoint(self, said: Mapping[str, Any]) -> None:
        folder = self.folder / CHECKPOINT
        partial, final = folder / "partial", folder / f"{self.step:09d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for layer, trainer in self.trainers.items():
                save_state(trainer, partial, f"layer_{layer:02d}")
            write_json(partial / STATE, {"settings": said, **{name: getattr(self, name) for name in _STATE}})
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for path in folder.iterdir():
            if path != final:
                shutil.rmtree(path)

    def load(self, folder: Path, said: Mapping[str, Any]) -> None:
        state = _read(folder / STATE, said)
        if state is None:
            raise UsageError(f"the checkpoint {folder} has no {STATE}; remove it to begin anew")
        for name in _STATE:
            setattr(self, name, state[name])
        self.place = Place(*self.place)
        for layer, trainer in self.trainers.items():
            load_state(trainer, folder, f"layer_{layer:02d}")

    def save(self, last: Block) -> dict[str, dict[str, float]]:
        """Saves the dictionaries, and tells how they do when they are loaded again."""
        found = {}
        for layer, trainer in self.trainers.items():
            metadata = trainer.sae.cfg.metadata
            metadata.training_tokens, metadata.context_size = self.tokens, last.longest
            if self.settings.active is not None:
                set_threshold(trainer, last.streams[layer], self.settings.active)
            folder = self.folder / f"layer_{layer:02d}"
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            finish(trainer, partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
            measured = Reconstruction(load_dictionary(str(folder)).to(self.model.device))
            measured.add(last.streams[layer])
            found[str(layer)] = measured.to_dict()
        return found


_STATE = ("step", "tokens", "batch", "place", "norms")
