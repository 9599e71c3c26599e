"""Self-play runs, one after the other, in processes of their own: `run_worker.py SETTINGS.json`.

Settings of a run: `model`, `games`, `args` (fields of the config), `resume`, `pause`, the seconds to wait before each
step so that a test can end the run in the middle, `ranks`, a folder where each rank leaves what it ended with, and
`engine`, whether a stand-in generates whose samples differ by rank, as those of vLLM on each process do.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from transformers import TrainerCallback

from spiral_trl import SelfPlayConfig, SelfPlayTrainer
from spiral_trl.training.batch import learner_turns


class Watch(TrainerCallback):
    """Waits before each step, and counts the turns this rank has to train on."""

    def __init__(self, trainer, seconds):
        self.trainer, self.seconds, self.turns = trainer, seconds, []

    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(self.seconds)

    def on_step_end(self, args, state, control, **kwargs):
        self.turns.append(len(learner_turns(self.trainer.last_batch)) if self.trainer.last_batch is not None else None)


def use_engine(trainer):
    """Replies of random actions, legal or not, from a generator of each rank's own."""
    words, chosen = trainer._tokenizer.get_vocab(), random.Random(trainer.accelerator.process_index)

    def generate(prompts, *others):
        actions = [chosen.choice(["[check]", "[bet]", "[call]", "[fold]"]) for _ in prompts]
        replies = [[words["J"], words[action], trainer._tokenizer.eos_token_id] for action in actions]
        return replies, [[-1.0] * 3 for _ in prompts]

    trainer._generate_single_turn = generate
    trainer.player.engine, trainer.player.speculative = trainer._generate_by_engine, False


def run(settings):
    trainer = SelfPlayTrainer(settings["model"], settings["games"], SelfPlayConfig(**settings["args"]))
    if settings["engine"]:
        use_engine(trainer)
    watch = Watch(trainer, settings["pause"])
    trainer.add_callback(watch)
    print(f"processes: {trainer.accelerator.num_processes}, pid: {os.getpid()}", flush=True)
    trainer.train(resume_from_checkpoint=settings["resume"])
    if settings["ranks"] is not None:
        folder, rank = Path(settings["ranks"]), trainer.accelerator.process_index
        folder.mkdir(exist_ok=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder / f"{rank}.safetensors")
        ended = {
            "processes": trainer.accelerator.num_processes,
            "baselines": list(trainer.advantage.baselines.values()),
            "played": trainer.played,
            "turns": watch.turns,
        }
        (folder / f"{rank}.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for settings in json.loads(Path(sys.argv[1]).read_text()):
        run(settings)
    # Once, after the last of them: a process that leaves a gloo group at its exit may abort
    PartialState().destroy_process_group()
