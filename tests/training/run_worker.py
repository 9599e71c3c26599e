"""One self-play run in a process of its own: `run_worker.py SETTINGS.json`.

Settings: `model`, `games`, `args` (fields of the config), `resume`, and `pause`, the seconds to wait after each step so
that a test can end the process in the middle.
"""

import json
import sys
import time

import torch
from transformers import TrainerCallback

from spiral_trl import SelfPlayConfig, SelfPlayTrainer


class Pause(TrainerCallback):
    def __init__(self, seconds):
        self.seconds = seconds

    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(self.seconds)


def main(path):
    torch.set_num_threads(1)
    with open(path) as file:
        settings = json.load(file)
    trainer = SelfPlayTrainer(settings["model"], settings["games"], SelfPlayConfig(**settings["args"]))
    trainer.add_callback(Pause(settings.get("pause", 0.0)))
    print(f"processes: {trainer.accelerator.num_processes}", flush=True)
    trainer.train(resume_from_checkpoint=settings.get("resume"))


if __name__ == "__main__":
    main(sys.argv[1])
