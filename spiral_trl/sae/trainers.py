"""SAELens's trainers as they are used here: one for each layer, fed batch by batch, their state in files without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, did_you_mean, usage_errors


if TYPE_CHECKING:
    from sae_lens import SAETrainer
    from torch import Tensor


ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard", "gated")
# Their sparsity is a penalty's, not a number of features
PENALISED = ("standard", "gated")
# Fields that are settings of their own, or decided here
_DECIDED = frozenset(
    (
        *("d_in", "d_sae", "dtype", "device", "k", "target_l0", "metadata", "reshape_activations"),
        *("normalize_activations", "total_training_samples", "train_batch_size_samples", "lr", "checkpoint_path"),
        *("n_checkpoints", "save_final_checkpoint", "logger", "n_batches_for_norm_estimate", "autocast"),
    )
)
# Entries of dense codes computed at once
_ENTRIES = 1 << 26


def check_options(architecture: str, options: Mapping[str, Any]) -> None:
    """Refuses options that SAELens does not have for an architecture.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With the nearest one it has.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"architecture={architecture!r}; allowed: {', '.join(ARCHITECTURES)}"
            f"{did_you_mean(architecture, ARCHITECTURES)}"
        )
    allowed = sorted(set(_names(architecture)) - _DECIDED)
    for name in options:
        if name not in allowed:
            raise UsageError(
                f"options: {architecture} has no {name!r}; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}"
            )


def _names(architecture: str) -> list[str]:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class

    return [one.name for kind in (get_sae_training_class(architecture)[1], SAETrainerConfig) for one in fields(kind)]


def make_trainer(
    *,
    architecture: str,
    width: int,
    num_features: int,
    active: int | None,
    steps: int,
    batch_tokens: int,
    learning_rate: float,
    seed: int,
    options: Mapping[str, Any],
    metadata: Mapping[str, Any],
    device: str,
) -> SAETrainer[Any, Any]:
    """A trainer with fresh weights, which derive from the seed alone.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If SAELens refuses the options.
    """
    import torch
    from sae_lens import SAETrainer
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config_kind = get_sae_training_class(architecture)
    own = {one.name for one in fields(config_kind)}
    chosen = {**_defaults(architecture, width, num_features, active, steps), **options}
    # LinearLR divides by its first step
    warm_up = steps // 20 if steps >= 40 else 0
    schedule = {"lr_warm_up_steps": min(warm_up, 1000), "lr_decay_steps": steps // 5, "lr_end": learning_rate / 10}
    with usage_errors("options"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = config_kind(
            d_in=width,
            d_sae=num_features,
            dtype="float32",
            device="cpu",
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(**metadata),
            **{name: value for name, value in chosen.items() if name in own},
        )
        # On the CPU first, whose random numbers are the same everywhere
        sae = kind(config).to(device)
        return SAETrainer(
            SAETrainerConfig(
                total_training_samples=steps * batch_tokens,
                train_batch_size_samples=batch_tokens,
                lr=learning_rate,
                device=device,
                **{**schedule, **{name: value for name, value in chosen.items() if name not in own}},
            ),
            sae,
            iter(()),
        )


def _defaults(architecture: str, width: int, num_features: int, active: int | None, steps: int) -> dict[str, Any]:
    # A feature is dead, and revived, after a 20th of the steps
    window = {"dead_feature_window": max(min(steps // 20, 1000), 10)}
    if architecture in PENALISED:
        # Norms are the root of the width, squared errors the width: the penalty that suits GPT-2's, for any width
        return {**window, "l1_coefficient": 5.0 * (width / 768) ** 0.5, "l1_warm_up_steps": steps // 20}
    if architecture == "jumprelu":
        return {
            **window,
            "jumprelu_sparsity_loss_mode": "quadratic",
            "target_l0": float(active or 1),
            "l0_warm_up_steps": steps // 20,
        }
    nested = {"matryoshka_widths": sorted({max(num_features >> shift, 1) for shift in (3, 2, 1, 0)})}
    return {**window, "k": active, **(nested if architecture == "matryoshka_batchtopk" else {})}


def begin_at(trainer: SAETrainer[Any, Any], streams: Tensor) -> None:
    """Sets the scale by the mean norm of some streams `(n, width)`, and the decoder's bias to their mean."""
    import torch

    with torch.no_grad():
        streams = streams.float()
        scale = trainer.sae.cfg.d_in**0.5 / float(streams.norm(dim=-1).mean())
        trainer.activation_scaler.scaling_factor = scale
        trainer.sae.b_dec.data = scale * streams.mean(0)


def set_threshold(trainer: SAETrainer[Any, Any], streams: Tensor, active: int) -> None:
    """Where sparsity is one of a whole batch, sets the threshold of single tokens: the one over which some streams
    `(n, width)` have `active` features on average.

    The trainer's own is a slow mean over steps, which is far too low after a short training.
    """
    import torch

    if not hasattr(trainer.sae, "topk_threshold"):
        return
    with torch.no_grad():
        part = streams[: max(_ENTRIES // trainer.sae.cfg.d_sae, 1)]
        _, before = trainer.sae.encode_with_hidden_pre(trainer.activation_scaler(part.float()))
        count = min(active * len(part), before.numel() - 1)
        # Codes above it stay: the largest that does not
        threshold = before.flatten().topk(count + 1).values[-1].clamp(min=0)
        trainer.sae.topk_threshold = threshold.to(trainer.sae.topk_threshold.dtype)


def finish(trainer: SAETrainer[Any, Any], folder: Path) -> None:
    """Folds the scale into the weights, and saves the dictionary in SAELens's format.

    The trainer cannot go on after that.
    """
    scale = trainer.activation_scaler.scaling_factor
    if scale is not None:
        trainer.sae.fold_activation_norm_scaling_factor(scale)
        trainer.activation_scaler.scaling_factor = None
    trainer.sae.save_inference_model(folder)


def save_state(trainer: SAETrainer[Any, Any], folder: Path, stem: str) -> None:
    """Writes `STEM.safetensors` and `STEM.json`."""
    from safetensors.torch import save_file

    optimizer = trainer.optimizer.state_dict()
    tensors = {f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}
    for number, state in optimizer["state"].items():
        tensors.update({f"adam.{number}.{name}": value for name, value in state.items()})
    tensors["act_freq_scores"] = trainer.act_freq_scores
    tensors["n_forward_passes_since_fired"] = trainer.n_forward_passes_since_fired
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / f"{stem}.safetensors")
    values = {
        "scaling_factor": trainer.activation_scaler.scaling_factor,
        "param_groups": optimizer["param_groups"],
        "lr_scheduler": trainer.lr_scheduler.state_dict(),
        "coefficient_schedulers": {name: one.state_dict() for name, one in trainer.coefficient_schedulers.items()},
        **{name: getattr(trainer, name) for name in _COUNTS},
    }
    (folder / f"{stem}.json").write_text(json.dumps(values) + "\n", encoding="utf-8")


def load_state(trainer: SAETrainer[Any, Any], folder: Path, stem: str) -> None:
    """Reads what [`save_state`] wrote.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / f"{stem}.safetensors", device=str(trainer.cfg.device))
        values = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        trainer.sae.load_state_dict(
            {name.removeprefix("sae."): value for name, value in tensors.items() if name.startswith("sae.")}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, number, key = name.split(".")
                # Adam counts on the CPU
                state.setdefault(int(number), {})[key] = value.cpu() if key == "step" else value
        trainer.optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})
        trainer.lr_scheduler.load_state_dict(values["lr_scheduler"])
        for name, one in trainer.coefficient_schedulers.items():
            one.load_state_dict(values["coefficient_schedulers"][name])
        trainer.activation_scaler.scaling_factor = values["scaling_factor"]
        trainer.act_freq_scores = tensors["act_freq_scores"]
        trainer.n_forward_passes_since_fired = tensors["n_forward_passes_since_fired"]
        for name in _COUNTS:
            setattr(trainer, name, values[name])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"the checkpoint {folder} cannot be read: {error}; remove it to begin anew") from None


_COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples")
