"""Dictionaries: sparse autoencoders of SAELens over residual streams, as they are used here.

A name is one of

- a folder with `cfg.json` and `sae_weights.safetensors`, written by SAELens or by [`~spiral_trl.sae.train`];
- a folder of such folders, one for each layer: `layer_00/`, `layer_01/`, ...;
- `release:NAME/ID`: one of SAELens's registry;
- `release:NAME` or `release:NAME/PATTERN`: all of a release that read a residual stream, `*` standing for any text.

Layers are numbered as in [`~spiral_trl.sae.activations`].
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, did_you_mean
from .activations import check_layers
from .extra import require_extra


if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor
    from transformers import PreTrainedModel


CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
RELEASE = "release:"
# Those whose codes of a token depend on the token's stream alone and are not negative
ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", "matching_pursuit")
# Under these a token's stream is scaled by a factor of its own before it is read
_PER_TOKEN = ("layer_norm", "constant_norm_rescale")
_FOLDED = ("none", *_PER_TOKEN)
_HOOK = re.compile(r"^blocks\.(\d+)\.hook_resid_(pre|post)$")
_BLOCK = re.compile(r"^(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)$")
# Ids of a registry: hooks with or without more behind them, or, for the stream after a block, the block's number
_ID_HOOK = re.compile(r"^(blocks\.\d+\.hook_resid_(?:pre|post))(?:_|$)")
_ID_BLOCK = re.compile(r"^(?:resid_post[_/])?(?:layer_?|l)(\d+)(?:r?_|/|$)")


@dataclass(frozen=True, eq=False)
class Dictionary:
    """One sparse autoencoder at one layer, frozen.

    Args:
        layer (`int`): The layer it reads.
        name (`str`): `RELEASE/ID` or the folder.
        sae ([`~sae_lens.SAE`]): The autoencoder.
        neuronpedia (`str`, *optional*): Where Neuronpedia shows its features, such as `gpt2-small/6-res-jb`.
        centred (`bool`, *optional*, defaults to `False`): Whether it reads streams whose mean over the width is taken
            off, as TransformerLens gives them for models with centred writing weights. The mean has no effect on a model
            whose every reading of the stream is a layer norm.
    """

    layer: int
    name: str
    sae: SAE[Any]
    neuronpedia: str | None = None
    centred: bool = False

    @property
    def num_features(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def width(self) -> int:
        return int(self.sae.cfg.d_in)

    @property
    def architecture(self) -> str:
        return self.sae.cfg.architecture()

    @property
    def prepend_bos(self) -> bool | None:
        """Whether it was trained on texts that begin with the beginning-of-sequence token, where that is known."""
        return self.sae.cfg.metadata.prepend_bos

    @property
    def per_token_scale(self) -> bool:
        """Whether each token's stream is scaled by a factor of its own before it is read."""
        return self.sae.cfg.normalize_activations in _PER_TOKEN

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights and of what else the codes depend on: 16 hexadecimal digits."""
        config = {
            key: value
            for key, value in self.sae.cfg.to_dict().items()
            if key not in ("metadata", "device", "dtype") and isinstance(value, str | int | float | bool)
        }
        digest = hashlib.sha256(json.dumps({**config, "centred": self.centred}, sort_keys=True).encode())
        for key, value in sorted(self.sae.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(memoryview(value.detach().float().cpu().contiguous().numpy()).cast("B"))
        return digest.hexdigest()[:16]

    @cached_property
    def directions(self) -> Tensor:
        """`(num_features, width)`: decoder rows, detached: what one unit of a code adds to the stream."""
        return self.sae.W_dec.detach()

    def to(self, device: Any) -> Dictionary:
        """Moves the autoencoder to a device, in place."""
        self.sae.to(device)
        self.__dict__.pop("directions", None)
        return self

    def read(self, stream: Tensor) -> Tensor:
        """The part of the stream that the dictionary reads: `(..., width)`, in its dtype, without the mean where
        `centred`."""
        stream = stream.to(device=self.sae.W_dec.device, dtype=self.sae.dtype)
        return stream - stream.mean(-1, keepdim=True) if self.centred else stream

    def scale(self, stream: Tensor) -> Tensor:
        """`(..., 1)`: by how much a unit of a code changes the stream along its direction; 1 unless
        `per_token_scale`."""
        import torch

        read = self.read(stream)
        if not self.per_token_scale:
            return torch.ones_like(read[..., :1])
        if self.sae.cfg.normalize_activations == "constant_norm_rescale":
            return read.norm(dim=-1, keepdim=True) / self.width**0.5
        return (read - read.mean(-1, keepdim=True)).std(-1, keepdim=True)

    def encode(self, stream: Tensor) -> Tensor:
        """Codes of residual streams.

        Args:
            stream (`Tensor`): `(n, width)`, of any dtype.

        Returns:
            `Tensor`: `(n, num_features)`, dense, not negative, in the dictionary's dtype.
        """
        import torch

        with torch.no_grad():
            return self.sae.encode(self.read(stream))

    def decode(self, codes: Tensor, stream: Tensor | None = None) -> Tensor:
        """What codes stand for, in the stream's own coordinates (without its mean where `centred`).

        Args:
            codes (`Tensor`): `(n, num_features)`.
            stream (`Tensor`, *optional*): `(n, width)`, the streams that were read; needed where `per_token_scale`.

        Returns:
            `Tensor`: `(n, width)`.
        """
        import torch

        with torch.no_grad():
            if self.per_token_scale:
                if stream is None:
                    raise ValueError(f"{self.name} scales every token by itself: decoding needs the streams too")
                # The autoencoder keeps each token's factor from reading to decoding
                self.sae.run_time_activation_norm_fn_in(self.read(stream))
            return self.sae.decode(codes.to(device=self.sae.W_dec.device, dtype=self.sae.dtype))

    def error(self, stream: Tensor, codes: Tensor | None = None) -> Tensor:
        """What the dictionary misses of streams `(n, width)`: read minus reconstructed, `(n, width)`.

        `stream - error` is the stream with the dictionary spliced in; a mean that the dictionary does not read stays.
        """
        codes = self.encode(stream) if codes is None else codes
        return self.read(stream) - self.decode(codes, stream)

    def to_dict(self) -> dict[str, Any]:
        """What a store says about its dictionaries."""
        return {
            "dictionary": self.name,
            "num_features": self.num_features,
            "width": self.width,
            "architecture": self.architecture,
            "fingerprint": self.fingerprint,
            "neuronpedia": self.neuronpedia,
            "centred": self.centred,
        }


def layer_of_hook(hook: str | None) -> int | None:
    """The layer that a hook of TransformerLens, or a block of transformers, gives; `None` if it gives another thing."""
    if match := _HOOK.match(hook or ""):
        return int(match[1]) + (match[2] == "post")
    match = _BLOCK.match(hook or "")
    return int(match[1]) + 1 if match else None


def load_dictionary(
    name: str, layer: int | None = None, model: PreTrainedModel | None = None, any_model: bool = False
) -> Dictionary:
    """Loads one dictionary.

    Args:
        name (`str`): A folder or `release:NAME/ID`; see the module.
        layer (`int`, *optional*): The layer it reads; by default what its configuration says. Picks one where the name
            stands for several.
        model ([`~transformers.PreTrainedModel`], *optional*): The model that it has to fit, which is checked before
            weights are read.
        any_model (`bool`, *optional*, defaults to `False`): Whether the dictionary may have been trained on a model of
            another name.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is none, it cannot be read, or it does not fit.
    """
    sources = _sources(name, None if layer is None else [layer])
    if len(sources) > 1:
        raise UsageError(
            f"{name} holds dictionaries of layers {', '.join(map(str, sorted(sources)))}: say which one is meant"
        )
    ((at, source),) = sources.items()
    return source.load(at, model, any_model)


def load_dictionaries(
    name: str | Sequence[str],
    model: PreTrainedModel | None = None,
    layers: Collection[int] | None = None,
    any_model: bool = False,
) -> dict[int, Dictionary]:
    """Loads dictionaries of several layers.

    Args:
        name (`str` or `Sequence[str]`): One or several names; see the module.
        model ([`~transformers.PreTrainedModel`], *optional*): The model that they have to fit, which is checked before
            weights are read.
        layers (`Collection[int]`, *optional*): The wanted layers; by default all there are.
        any_model (`bool`, *optional*, defaults to `False`): Whether they may have been trained on a model of another
            name, such as a base model where this one was trained further.

    Returns:
        `dict[int, Dictionary]`: By layer, ascending.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If one is missing, cannot be read or does not fit.
    """
    sources: dict[int, _Source] = {}
    for one in [name] if isinstance(name, str) else name:
        for layer, source in _sources(one, None).items():
            if layer in sources:
                raise UsageError(f"{sources[layer].name} and {source.name} both read layer {layer}")
            sources[layer] = source
    if missing := sorted(set(layers or ()) - set(sources)):
        raise UsageError(
            f"{name} has no dictionary of layer {missing[0]}; it has those of {', '.join(map(str, sorted(sources)))}"
        )
    wanted = sorted(sources if layers is None else set(layers))
    if model is not None:
        for layer in wanted:
            sources[layer].check(layer, model, any_model)
    return {layer: sources[layer].load(layer) for layer in wanted}


@dataclass(frozen=True)
class _Source:
    """Where a dictionary comes from: a folder, or a release and id of the registry."""

    name: str
    folder: Path | None = None
    release: str = ""
    id: str = ""

    @cached_property
    def config(self) -> dict[str, Any]:
        from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting, load_sae_config_from_huggingface

        if self.folder is not None:
            config = _read_config(self.folder)
            try:
                config = handle_config_defaulting(config)
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(f"{self.folder / CONFIG} is no configuration of SAELens: {error!r}") from None
        else:
            with _downloads(self.name):
                config = load_sae_config_from_huggingface(self.release, self.id)
        for key in ("architecture", "d_in", "d_sae"):
            if key not in config:
                raise UsageError(f"{self.name} is no dictionary of SAELens: its configuration has no {key}")
        return config

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.config.get("metadata") or {}

    def _said(self, key: str) -> Any:
        # What the registry adds stands beside the metadata, unless the configuration is of an old version
        return self.metadata.get(key) or self.config.get(key)

    def check(self, layer: int, model: PreTrainedModel | None, any_model: bool) -> None:
        """Refuses what cannot be used, by the configuration alone."""
        config, metadata = self.config, self.metadata
        architecture = config["architecture"]
        if architecture not in ARCHITECTURES:
            raise UsageError(
                f"{self.name} has architecture {architecture!r}; allowed: {', '.join(ARCHITECTURES)}"
                f"{did_you_mean(architecture, ARCHITECTURES)}"
            )
        hook = metadata.get("hook_name")
        if hook is not None and (at := layer_of_hook(hook)) != layer:
            reads = "no residual stream between blocks" if at is None else f"layer {at}"
            raise UsageError(f"{self.name} was trained on {hook}, which is {reads}, so it cannot read layer {layer}")
        normalisation = config.get("normalize_activations", "none")
        scaled = self.folder is None and normalisation == "expected_average_only_in"
        if normalisation not in _FOLDED and not scaled:
            raise UsageError(
                f"{self.name} was trained on activations normalised by {normalisation}, which its weights do not hold; "
                "save it when its training has ended, which folds that in"
            )
        if model is None:
            return
        text = model.config.get_text_config()
        check_layers(model, [layer])
        if config["d_in"] != text.hidden_size:
            raise UsageError(
                f"{self.name} reads streams of width {config['d_in']}, but the model's have {text.hidden_size}"
            )
        facts = {"model_type": text.model_type, "num_hidden_layers": text.num_hidden_layers}
        for key, value in facts.items():
            if metadata.get(key, value) != value:
                raise UsageError(
                    f"{self.name} was trained on another model: its {key} is {metadata[key]}, this model's {value}"
                )
        trained, given = metadata.get("model_name"), model.config._name_or_path
        if not any_model and trained and given and _known_apart(trained, given):
            raise UsageError(
                f"{self.name} was trained on {trained}, but the model is {given}; allow another model if one was trained "
                "from the other"
            )

    def load(self, layer: int, model: PreTrainedModel | None = None, any_model: bool = False) -> Dictionary:
        require_extra()
        self.check(layer, model, any_model)
        with warnings.catch_warnings():
            # It asks for TransformerLens's loading of the model; here the centring is done instead
            warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pretrained_kwargs")
            sae = self._from_folder() if self.folder is not None else self._from_release()
        for key, value in sae.state_dict().items():
            if not value.isfinite().all():
                raise UsageError(f"{self.name} is corrupt: {key} holds values that are not finite")
        sae.eval().requires_grad_(False)
        kwargs = self._said("model_from_pretrained_kwargs") or {}
        return Dictionary(
            layer=layer,
            name=self.name,
            sae=sae,
            neuronpedia=self._said("neuronpedia_id"),
            centred=bool(kwargs.get("center_writing_weights")),
        )

    def _from_folder(self) -> SAE[Any]:
        from sae_lens import SAE
        from safetensors import SafetensorError, safe_open

        assert self.folder is not None
        path = self.folder / WEIGHTS
        expected = (self.config["d_sae"], self.config["d_in"])
        try:
            with safe_open(path, framework="pt") as file:
                shape = tuple(file.get_slice("W_dec").get_shape())
            if shape != expected:
                raise UsageError(f"{path} is corrupt: its decoder has shape {shape} where {CONFIG} says {expected}")
            return SAE.load_from_disk(self.folder, dtype="float32")
        except FileNotFoundError:
            raise UsageError(f"{self.folder} has no {WEIGHTS}") from None
        except (SafetensorError, OSError, RuntimeError, KeyError, TypeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None

    def _from_release(self) -> SAE[Any]:
        from sae_lens import SAE

        with _downloads(self.name):
            return SAE.from_pretrained(self.release, self.id)


@contextmanager
def _downloads(name: str) -> Iterator[None]:
    """Tells of a dictionary that cannot be downloaded in one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    # LocalEntryNotFoundError: there is no network, and nothing was downloaded before
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"{name} could not be downloaded: {said}") from None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path} cannot be read: it holds no JSON object")
    return config


def _sources(name: str, layers: Collection[int] | None) -> dict[int, _Source]:
    found = _of_release(name) if name.startswith(RELEASE) else _of_folder(Path(name), layers)
    if layers is None or not set(layers) - set(found):
        return {layer: source for layer, source in found.items() if layers is None or layer in layers}
    missing = sorted(set(layers) - set(found))
    raise UsageError(f"{name} has no dictionary of layer {missing[0]}; it has those of {_listed(found)}")


def _listed(layers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(layers)))


def _of_folder(folder: Path, layers: Collection[int] | None) -> dict[int, _Source]:
    if not folder.is_dir():
        near = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        raise UsageError(
            f"there is no folder {folder}{did_you_mean(folder.name, near)}; a release of SAELens is written "
            f"{RELEASE}NAME or {RELEASE}NAME/ID"
        )
    if (folder / CONFIG).is_file():
        only = next(iter(layers)) if layers is not None and len(layers) == 1 else None
        return {_layer_of(folder, only): _Source(str(folder), folder)}
    found: dict[int, _Source] = {}
    for path in sorted(folder.iterdir()):
        if (path / CONFIG).is_file():
            layer = _layer_of(path, None)
            if layer in found:
                raise UsageError(f"{found[layer].folder} and {path} both read layer {layer}")
            found[layer] = _Source(str(path), path)
    if not found:
        raise UsageError(f"{folder} holds no dictionaries: neither {CONFIG} nor folders that have one")
    return found


def _layer_of(folder: Path, given: int | None) -> int:
    config = _read_config(folder)
    hook = (config.get("metadata") or config).get("hook_name") or config.get("hook_point")
    layer = layer_of_hook(hook)
    if layer is None and hook is None and (match := re.fullmatch(r"layer_(\d+)", folder.name)):
        layer = int(match[1])
    if layer is not None:
        return layer
    if given is not None:
        return given
    raise UsageError(
        f"{folder} was trained on {hook}, which is no residual stream between blocks"
        if hook
        else f"{folder} does not say which layer it reads: say it, or call the folder layer_NN"
    )


def _of_release(name: str) -> dict[int, _Source]:
    require_extra()
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    release, _, pattern = name.removeprefix(RELEASE).partition("/")
    if release not in directory:
        raise UsageError(
            f"SAELens has no release {release!r}{did_you_mean(release, directory)} (it has {len(directory)})"
        )
    ids = list(directory[release].saes_map)
    if pattern and "*" not in pattern:
        if pattern not in ids:
            raise UsageError(
                f"the release {release} has no {pattern!r}{did_you_mean(pattern, ids)} (it has {len(ids)}, such as "
                f"{ids[0]!r})"
            )
        source = _Source(f"{release}/{pattern}", None, release, pattern)
        layer = _layer_of_id(pattern)
        layer = layer_of_hook(source.metadata.get("hook_name")) if layer is None else layer
        if layer is None:
            raise UsageError(f"{release}/{pattern} reads no residual stream between blocks")
        return {layer: source}
    found: dict[int, list[str]] = {}
    for id in ids:
        layer = _layer_of_id(id) if fnmatchcase(id, pattern or "*") else None
        if layer is not None:
            found.setdefault(layer, []).append(id)
    if not found:
        raise UsageError(
            f"the release {release} has none that reads a residual stream{f' and matches {pattern!r}' if pattern else ''}; it "
            f"has {ids[0]!r}, say"
        )
    for layer, same in found.items():
        # Where both the end of a block and the beginning of the next are there, they are two of one stream
        chosen = [id for id in same if id.endswith("hook_resid_pre")] or same
        if len(chosen) > 1:
            raise UsageError(
                f"the release {release} has {len(chosen)} for layer {layer}, such as {chosen[0]!r} and {chosen[-1]!r}: "
                f"choose by a pattern, as in {RELEASE}{release}/{re.sub('[0-9]+', '*', chosen[0], count=1)}"
            )
        found[layer] = chosen
    return {layer: _Source(f"{release}/{id}", None, release, id) for layer, (id,) in sorted(found.items())}


def _layer_of_id(id: str) -> int | None:
    if match := _ID_HOOK.match(id):
        return layer_of_hook(match[1])
    match = _ID_BLOCK.match(id)
    return int(match[1]) + 1 if match else None


def _known_apart(one: str, other: str) -> bool:
    """Whether two names are those of different models; a folder, or a name that nobody knows, may be any model."""
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        return get_official_model_name(one) != get_official_model_name(other.removeprefix("openai-community/"))
    except ValueError:
        return False
