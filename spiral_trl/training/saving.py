"""What [`~spiral_trl.SelfPlayTrainer`] writes into a checkpoint beside TRL's, and restores from it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from .checkpoint import REFERENCE_NAME, load_buffer, read_state, rotate, save_buffer, write_state


if TYPE_CHECKING:
    from .trainer import SelfPlayTrainer


def save_state(trainer: SelfPlayTrainer, folder: str, limit: int | None) -> None:
    """Writes baselines, counters, a refreshed reference, the pool and an unspent generation, then the mark that the
    checkpoint is whole, and deletes older ones beyond `limit`. Called by all processes."""
    args, accelerator = trainer.args, trainer.accelerator
    micro_steps = args.steps_per_generation * trainer.num_iterations
    unspent = trainer._step % micro_steps != 0
    if unspent and trainer._buffered_inputs is not None:
        save_buffer(folder, accelerator.process_index, trainer._buffered_inputs)
    if args.sync_ref_model and trainer.ref_model is not None and args.should_save:
        reference = accelerator.unwrap_model(trainer.ref_model)
        save_file(
            {name: p.detach().cpu().clone() for name, p in reference.named_parameters()},
            os.path.join(folder, REFERENCE_NAME),
        )
    if trainer.pool is not None and args.should_save:
        trainer.pool.save(folder)
    accelerator.wait_for_everyone()
    if args.should_save:
        state = {
            "micro_step": trainer._step,
            "unspent_generation": unspent,
            "micro_steps_per_generation": micro_steps,
            "advantage": trainer.advantage.state_dict(),
            "played": trainer.played,
            "seconds": trainer.seconds,
            "games": list(trainer.games),
            "processes": accelerator.num_processes,
            "model_only": args.save_only_model,
            "guards": trainer.guards.state_dict(),
        }
        write_state(folder, state)
        rotate(os.path.dirname(folder), limit, trainer.state.best_model_checkpoint)


def load_state(trainer: SelfPlayTrainer, checkpoint: str) -> None:
    """Restores what [`save_state`] wrote. Called by all processes."""
    state = read_state(checkpoint)
    trainer.advantage.load_state_dict(state["advantage"])
    trainer._step = state["micro_step"]
    trainer.played = dict(state["played"])
    trainer.seconds = dict(state["seconds"])
    if state["unspent_generation"]:
        if state["processes"] != trainer.accelerator.num_processes:
            raise ValueError(
                f"{checkpoint} was saved inside a generation by {state['processes']} processes; resume it with as "
                f"many, not {trainer.accelerator.num_processes}."
            )
        trainer._buffered_inputs = load_buffer(
            checkpoint, trainer.accelerator.process_index, trainer.accelerator.device
        )
    path = os.path.join(checkpoint, REFERENCE_NAME)
    if trainer.args.sync_ref_model and trainer.ref_model is not None:
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        reference.load_state_dict(load_file(path), strict=False)
    if trainer.pool is not None:
        trainer.pool.load(checkpoint)
    if "guards" in state:
        trainer.guards.load_state_dict(state["guards"])
