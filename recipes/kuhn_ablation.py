"""What role-conditioned baselines change: RAE against raw returns and one shared baseline, on the embedded model.

    python recipes/kuhn_ablation.py --seeds 0 1 2 --output_dir outputs/ablation

Three parts, on Kuhn poker and on Kuhn poker with a seat advantage (player 0 gets a chip from player 1 whatever happens,
which changes no strategy):

- variance: the policy gradient's variance under each advantage, on the same games, before and after training;
- learning: exploitability and illegal rate after training with each advantage, with the magnet of kuhn_tiny.yaml;
- thinking: reply length over training without the magnet, from a warm start whose replies carry 0 to 6 words of
  optional reasoning (the paper reports that replies collapse without RAE).

Prints Markdown tables, and writes every figure to `ablation.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_callback import PrinterCallback

from spiral_trl import SelfPlayConfig, SelfPlayTrainer
from spiral_trl.advantages import make_advantage
from spiral_trl.training.gradient_variance import gradient_variance
from spiral_trl.training.measure import measure
from spiral_trl.training.tiny import save_tiny_model, warm_start


GAMES = {
    "Kuhn": "kuhn_poker(observation=compact)",
    "Kuhn, seat advantage": "kuhn_poker(observation=compact,seat_bonus=1)",
}
ADVANTAGES = ("rae", "none", "shared")


def make_trainer(folder: Path, game: str, seed: int, out: Path, **changes) -> SelfPlayTrainer:
    settings = {
        "max_steps": 1000,
        "games_per_generation": 512,
        "num_iterations": 1,
        "max_completion_length": 3,
        "per_device_train_batch_size": 64,
        "learning_rate": 4e-3,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.02},
        "adam_beta2": 0.99,
        "optim": "adamw_torch_fused",
        "beta": 0.6,
        "sync_ref_model": True,
        "ref_model_sync_steps": 100,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 50,
        "report_to": "none",
        "disable_tqdm": True,
    }
    args = SelfPlayConfig(output_dir=str(out), overwrite_output_dir=True, seed=seed, **{**settings, **changes})
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = SelfPlayTrainer(
        model=model, games=game, args=args, processing_class=AutoTokenizer.from_pretrained(folder)
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def warm_model(seed: int, out: Path, reasoning: bool) -> Path:
    folder = out / f"warm_start-{seed}{'-reasoning' if reasoning else ''}"
    save_tiny_model(folder, seed, reasoning=reasoning)
    return warm_start(folder, GAMES["Kuhn"], folder, seed, reasoning=reasoning, steps=250 if reasoning else 150)


def variances(trainer: SelfPlayTrainer) -> dict[str, float]:
    estimators = {name: make_advantage(name, 0.95) for name in ADVANTAGES}
    return gradient_variance(trainer, estimators, batches=100, warm_up=10)


def learning(seed: int, out: Path, figures: list[dict]) -> None:
    folder = warm_model(seed, out, reasoning=False)
    for title, game in GAMES.items():
        for name in ADVANTAGES:
            trainer = make_trainer(folder, game, seed, out / "run", advantage=name, games_per_generation=512)
            row = {"part": "learning", "game": title, "advantage": name, "seed": seed}
            if name == "rae":
                trainer.args.games_per_generation = 128
                row["variance_start"] = variances(trainer)
                trainer.args.games_per_generation = 512
            trainer.train()
            measured = measure(trainer.player, game, None, seed)
            row["exploitability"] = measured.value
            row["illegal_rate"] = measured.exploitability.illegal_rate
            if name == "rae":
                trainer.args.games_per_generation = 128
                row["variance_end"] = variances(trainer)
            figures.append(row)
            print(json.dumps(row), flush=True)


def thinking(seed: int, out: Path, figures: list[dict]) -> None:
    folder = warm_model(seed, out, reasoning=True)
    for title, game in GAMES.items():
        for name in ADVANTAGES:
            trainer = make_trainer(
                folder,
                game,
                seed,
                out / "run",
                advantage=name,
                beta=0.0,
                sync_ref_model=False,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                lr_scheduler_kwargs=None,
                max_completion_length=12,
                games_per_generation=128,
                max_steps=300,
                logging_steps=1,
            )
            trainer.train()
            logs = [entry for entry in trainer.state.log_history if "completions/mean_length" in entry]
            lengths = [entry["completions/mean_length"] for entry in logs]
            illegal = [entry["self_play/illegal_rate"] for entry in logs]
            norms = [entry["grad_norm"] for entry in logs]
            row = {"part": "thinking", "game": title, "advantage": name, "seed": seed}
            # Means over ten steps around each point: single steps of 128 games are noisy
            for label, start in (("start", 0), ("step 100", 95), ("step 200", 195), ("end", 290)):
                row[label] = float(np.mean(lengths[start : start + 10]))
            row["illegal_rate"] = float(np.mean(illegal[-10:]))
            row["grad_norm_start"], row["grad_norm_end"] = float(np.mean(norms[:10])), float(np.mean(norms[-10:]))
            figures.append(row)
            print(json.dumps(row), flush=True)


def spread(values: list[float], digits: int) -> str:
    """Mean, and the least and greatest over seeds."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def tables(figures: list[dict]) -> str:
    rows = [row for row in figures if row["part"] == "learning"]
    lines = []
    if rows:
        lines += [
            "| game | gradient variance relative to RAE | raw returns | one shared baseline |",
            "|---|---|---|---|",
        ]
        for title in GAMES:
            for stage in ("start", "end"):
                found = [r[f"variance_{stage}"] for r in rows if r["game"] == title and r["advantage"] == "rae"]
                cells = [spread([v[name] / v["rae"] for v in found], 2) for name in ("none", "shared")]
                lines.append(
                    f"| {title} | {'before' if stage == 'start' else 'after'} training | {' | '.join(cells)} |"
                )
        lines += ["", "| game | advantage | exploitability, chips | illegal replies |", "|---|---|---|---|"]
        for title in GAMES:
            for name in ADVANTAGES:
                found = [r for r in rows if r["game"] == title and r["advantage"] == name]
                cells = [
                    spread([r["exploitability"] for r in found], 3),
                    spread([r["illegal_rate"] for r in found], 5),
                ]
                lines.append(f"| {title} | {name} | {' | '.join(cells)} |")
    rows = [row for row in figures if row["part"] == "thinking"]
    if rows:
        points = ("start", "step 100", "step 200", "end")
        lines += ["", f"| game | advantage | reply tokens at {' | '.join(points)} | illegal replies at end |"]
        lines.append("|---" * 7 + "|")
        for title in GAMES:
            for name in ADVANTAGES:
                found = [r for r in rows if r["game"] == title and r["advantage"] == name]
                cells = [spread([r[point] for r in found], 1) for point in points]
                cells.append(spread([r["illegal_rate"] for r in found], 3))
                lines.append(f"| {title} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds to run.")
    parser.add_argument("--parts", nargs="+", default=["learning", "thinking"], choices=["learning", "thinking"])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/ablation"), help="Where ablation.json goes.")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    figures: list[dict] = []
    for seed in options.seeds:
        for part in options.parts:
            {"learning": learning, "thinking": thinking}[part](seed, options.output_dir, figures)
            (options.output_dir / "ablation.json").write_text(json.dumps(figures, indent=2))
    print(tables(figures))


if __name__ == "__main__":
    main()
