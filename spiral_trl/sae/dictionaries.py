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
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .dictionary_names import PER_TOKEN, Source, find_sources
from .extra import require_extra


if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor
    from transformers import PreTrainedModel


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
        return self.sae.cfg.normalize_activations in PER_TOKEN

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
        directions = self.sae.W_dec.detach()
        if getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False):
            directions = directions / directions.norm(dim=-1, keepdim=True)
        return directions

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

    @property
    def shown_name(self) -> str:
        """What it is called in what is kept: a release's name, or the last two parts of a folder's."""
        return "/".join(Path(self.name).parts[-2:]) if Path(self.name).is_dir() else self.name

    def to_dict(self) -> dict[str, Any]:
        """What a store says about its dictionaries."""
        return {
            "dictionary": self.shown_name,
            "num_features": self.num_features,
            "width": self.width,
            "architecture": self.architecture,
            "fingerprint": self.fingerprint,
            "neuronpedia": self.neuronpedia,
            "centred": self.centred,
        }


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
    require_extra()
    sources = find_sources(name, None if layer is None else [layer])
    if len(sources) > 1:
        raise UsageError(
            f"{name} holds dictionaries of layers {', '.join(map(str, sorted(sources)))}: say which one is meant"
        )
    ((at, source),) = sources.items()
    return _load(source, at, model, any_model)


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
    require_extra()
    sources: dict[int, Source] = {}
    for one in [name] if isinstance(name, str) else name:
        for layer, source in find_sources(one, None).items():
            if layer in sources:
                raise UsageError(f"{sources[layer].name} and {source.name} both read layer {layer}")
            sources[layer] = source
    if missing := sorted(set(layers or ()) - set(sources)):
        raise UsageError(
            f"{name} has no dictionary of layer {missing[0]}; it has those of {', '.join(map(str, sorted(sources)))}"
        )
    wanted = sorted(sources if layers is None else set(layers))
    for layer in wanted:
        sources[layer].check(layer, model, any_model)
    return {layer: _load(sources[layer], layer, model, any_model) for layer in wanted}


def _load(source: Source, layer: int, model: PreTrainedModel | None, any_model: bool) -> Dictionary:
    source.check(layer, model, any_model)
    return Dictionary(
        layer=layer,
        name=source.name,
        sae=source.load(),
        neuronpedia=source.said("neuronpedia_id"),
        centred=bool((source.said("model_from_pretrained_kwargs") or {}).get("center_writing_weights")),
    )
