"""What the name of a dictionary stands for: folders, and releases in the registry of SAELens; see
[`~spiral_trl.sae.dictionaries`]."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, did_you_mean
from .activations import check_layers_of


if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import PreTrainedConfig


CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
RELEASE = "release:"
# Those whose codes of a token depend on the token's stream alone and are not negative
ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", "matching_pursuit")
# Under these a token's stream is scaled by a factor of its own before it is read
PER_TOKEN = ("layer_norm", "constant_norm_rescale")
_FOLDED = ("none", *PER_TOKEN)
_HOOK = re.compile(r"^blocks\.(\d+)\.hook_resid_(pre|post)$")
_BLOCK = re.compile(r"^(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)$")
# Ids of a registry: hooks with or without more behind them, or, for the stream after a block, the block's number
_ID_HOOK = re.compile(r"^(blocks\.\d+\.hook_resid_(?:pre|post))(?:_|$)")
_ID_BLOCK = re.compile(r"^(?:resid_post[_/])?(?:layer_?|l)(\d+)(?:r?_|/|$)")


def layer_of_hook(hook: str | None) -> int | None:
    """The layer that a hook of TransformerLens, or a block of transformers, gives; `None` if it gives another thing."""
    if match := _HOOK.match(hook or ""):
        return int(match[1]) + (match[2] == "post")
    match = _BLOCK.match(hook or "")
    return int(match[1]) + 1 if match else None


@dataclass(frozen=True)
class Source:
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

    @property
    def trained_on(self) -> str | None:
        """The model it was trained on, where that is known; of a release without a download."""
        if self.folder is not None:
            return self.metadata.get("model_name")
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        return get_pretrained_saes_directory()[self.release].model

    def said(self, key: str) -> Any:
        """What the configuration says of something."""
        # What the registry adds stands beside the metadata, unless the configuration is of an old version
        return self.metadata.get(key) or self.config.get(key)

    def check(self, layer: int, model: PreTrainedConfig | None, any_model: bool) -> None:
        """Refuses what cannot be used by a model of this configuration: by its name, and then by its own configuration."""
        trained, given = self.trained_on, "" if model is None else model._name_or_path
        if not any_model and trained and given and _known_apart(trained, given):
            raise UsageError(
                f"{self.name} was trained on {trained}, but the model is {given}; allow another model if one was trained "
                "from the other"
            )
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
        text = model.get_text_config()
        check_layers_of(model, [layer])
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

    def load(self) -> SAE[Any]:
        """The autoencoder, frozen."""
        with warnings.catch_warnings():
            # It asks for TransformerLens's loading of the model; here the centring is done instead
            warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pretrained_kwargs")
            sae = self._from_folder() if self.folder is not None else self._from_release()
        for key, value in sae.state_dict().items():
            if not value.isfinite().all():
                raise UsageError(f"{self.name} is corrupt: {key} holds values that are not finite")
        return sae.eval().requires_grad_(False)

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


def find_sources(name: str, layers: Collection[int] | None) -> dict[int, Source]:
    found = _of_release(name) if name.startswith(RELEASE) else _of_folder(Path(name), layers)
    if layers is None or not set(layers) - set(found):
        return {layer: source for layer, source in found.items() if layers is None or layer in layers}
    missing = sorted(set(layers) - set(found))
    raise UsageError(f"{name} has no dictionary of layer {missing[0]}; it has those of {_listed(found)}")


def _listed(layers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(layers)))


def _of_folder(folder: Path, layers: Collection[int] | None) -> dict[int, Source]:
    if not folder.is_dir():
        near = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        raise UsageError(
            f"there is no folder {folder}{did_you_mean(folder.name, near)}; a release of SAELens is written "
            f"{RELEASE}NAME or {RELEASE}NAME/ID"
        )
    if (folder / CONFIG).is_file():
        only = next(iter(layers)) if layers is not None and len(layers) == 1 else None
        return {_layer_of(folder, only): Source(str(folder), folder)}
    found: dict[int, Source] = {}
    for path in sorted(folder.iterdir()):
        if (path / CONFIG).is_file():
            layer = _layer_of(path, None)
            if layer in found:
                raise UsageError(f"{found[layer].folder} and {path} both read layer {layer}")
            found[layer] = Source(str(path), path)
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


def _of_release(name: str) -> dict[int, Source]:
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
        source = Source(f"{release}/{pattern}", None, release, pattern)
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
    return {layer: Source(f"{release}/{id}", None, release, id) for layer, (id,) in sorted(found.items())}


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
