"""The paper's comparison on the embedded model: supervised, fixed opponents, self-play and its variants.

    python recipes/compare.py --seeds 0 1 2 --output_dir outputs/compare

Every arm starts from the same warm start of its seed (which knows the format of replies and no strategy), plays one hand
of Kuhn poker, and has the same number of games and of updates:

- base: the warm start itself;
- sft: supervised fine-tuning on 25,000 decisions of the equilibrium, no games;
- random, fixed: reinforcement learning against the random player, and against the equilibrium player (cfr);
- self-play: against itself, with role-conditioned advantages (RAE); no RAE: with raw returns;
- magnet: self-play with a reverse-KL term to a copy that is refreshed every 100 steps;
- pool: half of the games against itself, half against its own earlier snapshots.

All figures of play are exact, from the model's token probabilities on the game's table, with illegal replies forfeited.
Learning rates of sft, random, fixed and self-play were chosen by exploitability on a seed of its own (`--tune`, seed 5);
no RAE and pool share that of self-play, from which they differ in one thing, and the magnet has that of kuhn_tiny.yaml.
Prints one Markdown table, writes `compare.json` and `compare.png`. A job whose file is there is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from spiral_trl.stats import mean_interval


GAME = "kuhn_poker(observation=compact)"
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "sft": {"learning_rate": 4e-3},
    "random": {"learning_rate": 1e-4, "opponents": {"random": 1.0}},
    "fixed": {"learning_rate": 1e-4, "opponents": {"cfr": 1.0}},
    "self-play": {"learning_rate": 1e-4},
    "no RAE": {"learning_rate": 1e-4, "advantage": "none"},
    "magnet": {"learning_rate": 4e-3, "beta": 0.6, "sync_ref_model": True, "ref_model_sync_steps": 100},
    "pool": {"learning_rate": 1e-4, "opponents": {"self": 1.0, "pool(size=20,every=50)": 1.0}},
}
TUNED_OVER = (1e-4, 3e-4, 1e-3, 4e-3)
TUNING_SEED = 5
EARLIER = 16  # steps, as in the paper's comparison of a policy with itself
SFT_STEPS, SFT_ROWS = 1000, 25_000
COLUMNS = {
    "exploitability": "exploitability, chips",
    "vs_cfr": "return against cfr",
    "vs_random": "return against random",
    "win_rate_vs_earlier": f"win rate against itself {EARLIER} steps earlier",
    "turns": "turns per game",
    "illegal": "illegal replies",
}
CURVES = {
    "exploitability": "exploitability (chips)",
    "win_rate_vs_earlier": f"win rate against itself {EARLIER} steps earlier",
    "turns": "turns per game in self-play",
    "reply_length": "reply length (tokens, the end included)",
    "illegal": "illegal replies in self-play",
    "grad_norm": "gradient norm",
}
# Colour-blind safe (Okabe and Ito), in the order of ARMS
COLOURS = ("#999999", "#000000", "#E69F00", "#56B4E9", "#D55E00", "#CC79A7", "#009E73", "#0072B2")


# ------------------------------------------------------------------------------------------------------------- measures


class Referee:
    """What two policies come to against each other, on the game's table."""

    def __init__(self) -> None:
        from spiral_trl.evaluation.policy import bot_policy
        from spiral_trl.games import tabulate
        from spiral_trl.games.sequence_form import sequence_form
        from spiral_trl.players.bots import CFRPlayer, RandomPlayer

        table = tabulate(GAME)
        assert table is not None
        self.table, self.form = table, sequence_form(table)
        self.bots = {"cfr": bot_policy(CFRPlayer(), table), "random": bot_policy(RandomPlayer(), table)}

    def policy(self, player: Any) -> Any:
        from spiral_trl.evaluation.policy import exact_policy

        return exact_policy(player, self.table)

    def ends(self, policy: Any, other: Any, seat: int) -> np.ndarray:
        """`[E]` probability of each end, where `policy` sits in `seat`."""
        mine = np.array([turn.player == seat for turn in self.table.turns])
        probabilities = np.where(mine[:, None], policy.probabilities, other.probabilities)
        illegal = np.where(mine, policy.illegal, other.illegal)
        reach = self.form.reach(probabilities)[:, self.form.end_node].prod(0)
        return reach * self.form.end_illegal(illegal)

    def match(self, policy: Any, other: Any) -> tuple[float, float]:
        """Mean return and win rate of `policy` over both seats."""
        returns, wins = [], []
        for seat in range(2):
            weights = self.ends(policy, other, seat)
            returns.append(weights @ self.form.end_returns[:, seat])
            wins.append(weights @ (self.form.end_returns[:, seat] > 0))
        return float(np.mean(returns)), float(np.mean(wins))

    def figures(self, policy: Any, earlier: Any = None) -> dict[str, float | None]:
        from spiral_trl.evaluation.exploitability import exploitability
        from spiral_trl.games.table import DECISION

        measured = exploitability(self.table, policy)
        nodes = np.flatnonzero(self.table.kind == DECISION)
        met = self.form.reach(policy.probabilities)[:, nodes].prod(0)
        return {
            "exploitability": measured.exploitability,
            "illegal": float(met @ policy.illegal[self.table.turn[nodes]] / met.sum()),
            "turns": float(met.sum()),
            "vs_cfr": self.match(policy, self.bots["cfr"])[0],
            "vs_random": self.match(policy, self.bots["random"])[0],
            "win_rate_vs_earlier": None if earlier is None else self.match(policy, earlier)[1],
        }


# ----------------------------------------------------------------------------------------------------------------- jobs


def warm_folder(out: Path, seed: int) -> Path:
    return out / f"warm_start-{seed}"


def job(arm: str, seed: int, steps: int, learning_rate: float | None, out: Path, target: Path) -> None:
    """Trains one arm from one seed and writes its figures."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    warm = warm_folder(out, seed)
    tokenizer = AutoTokenizer.from_pretrained(warm)
    model = AutoModelForCausalLM.from_pretrained(warm)
    settings = dict(ARMS[arm])
    if learning_rate is not None:
        settings["learning_rate"] = learning_rate
    if arm == "base":
        row = {"curve": [{"step": 0, **measured_once(model, tokenizer)}]}
    elif arm == "sft":
        row = supervised(model, tokenizer, seed, settings["learning_rate"], out)
    else:
        row = self_play(model, tokenizer, seed, steps, settings, target.with_suffix(""))
    row |= {"arm": arm, "seed": seed, "steps": steps, "learning_rate": settings.get("learning_rate")}
    row["final"] = {name: value for name, value in row["curve"][-1].items() if name != "step"}
    unfinished = target.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(row) + "\n")
    os.replace(unfinished, target)


def measured_once(model: Any, tokenizer: Any) -> dict[str, float | None]:
    from spiral_trl.players.language_model import LanguageModelPlayer

    referee = Referee()
    return referee.figures(referee.policy(LanguageModelPlayer(model.eval(), tokenizer, max_new_tokens=3)))


def supervised(model: Any, tokenizer: Any, seed: int, learning_rate: float, out: Path) -> dict[str, Any]:
    from trl import SFTConfig, SFTTrainer

    from spiral_trl.experts.collect import ExpertSettings, make_decisions, seat_players
    from spiral_trl.players.bots import CFRPlayer
    from spiral_trl.training.tiny import completion_text

    settings = ExpertSettings((GAME,), expert="cfr", decisions=SFT_ROWS, seed=seed)
    dataset = make_decisions(settings, seat_players(settings, {"cfr": CFRPlayer()}, render=completion_text))
    args = SFTConfig(
        output_dir=str(out / "sft"),
        max_steps=SFT_STEPS,
        per_device_train_batch_size=128,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_length=tokenizer.model_max_length,
        completion_only_loss=True,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    # The trainer patches `forward`; the weights are what is measured
    from transformers import AutoModelForCausalLM

    fresh = AutoModelForCausalLM.from_config(model.config)
    fresh.load_state_dict(model.state_dict())
    return {"curve": [{"step": SFT_STEPS, **measured_once(fresh, tokenizer)}]}


def self_play(
    model: Any, tokenizer: Any, seed: int, steps: int, settings: dict[str, Any], folder: Path
) -> dict[str, Any]:
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    from spiral_trl import SelfPlayConfig, SelfPlayTrainer

    every = max(EARLIER, steps // 30)
    args = SelfPlayConfig(
        output_dir=str(folder),
        overwrite_output_dir=True,
        seed=seed,
        max_steps=steps,
        games_per_generation=2048,
        num_iterations=1,
        max_completion_length=3,
        per_device_train_batch_size=64,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        adam_beta2=0.99,
        optim="adamw_torch_fused",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=every,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    # TRL loads a reference model by name
    trainer = SelfPlayTrainer(
        model=model.config._name_or_path if settings.get("beta") else model,
        games=GAME,
        args=args,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    referee = Referee()
    curve: list[dict[str, Any]] = []

    class Measure(TrainerCallback):
        earlier: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            curve.append({"step": 0, **referee.figures(self.policy())})
            if every == EARLIER:
                self.earlier = self.policy()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = state.global_step
            if step % every == 0:
                curve.append({"step": step, **referee.figures(self.policy(), self.earlier)})
            if (step + EARLIER) % every == 0:
                self.earlier = self.policy()

        def policy(self) -> Any:
            with trainer.generation():
                return referee.policy(trainer.player)

    trainer.add_callback(Measure())
    trainer.train()
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "grad_norm" in entry}
    for point in curve:
        entry = logged.get(point["step"], {})
        point["grad_norm"] = entry.get("grad_norm")
        point["reply_length"] = entry.get("completions/mean_length")
    return {"curve": curve, "games": trainer.played["games"], "seconds": sum(trainer.seconds.values())}


# -------------------------------------------------------------------------------------------------------------- running


def run_jobs(wanted: Sequence[tuple[str, int, float | None]], steps: int, out: Path, workers: int) -> list[dict]:
    """The figures of all jobs, of which those without a file are run, `workers` at a time."""
    out.mkdir(parents=True, exist_ok=True)
    for seed in sorted({seed for _, seed, _ in wanted}):
        if not (warm_folder(out, seed) / "model.safetensors").is_file():
            from spiral_trl.training.tiny import save_tiny_model, warm_start

            save_tiny_model(warm_folder(out, seed), seed)
            warm_start(warm_folder(out, seed), GAME, warm_folder(out, seed), seed)

    def run(wish: tuple[str, int, float | None]) -> dict:
        arm, seed, rate = wish
        suffix = "" if rate is None else f"-{rate:g}"
        target = out / f"{arm.replace(' ', '_')}-{seed}-{steps}{suffix}.json"
        if not target.is_file():
            command = [sys.executable, __file__, "--job", arm, "--seeds", str(seed), "--max_steps", str(steps)]
            command += ["--output_dir", str(out), "--target", str(target)]
            command += [] if rate is None else ["--learning_rate", str(rate)]
            log = target.with_suffix(".log")
            with log.open("w") as file:
                done = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if done.returncode:
                raise SystemExit(f"error: {arm}, seed {seed} failed; see {log}. The same command goes on from here.")
            print(f"{arm}, seed {seed}{suffix}: done", file=sys.stderr, flush=True)
        return json.loads(target.read_text())

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, wanted))


def table(rows: list[dict]) -> str:
    """One line for each arm: mean over seeds, with the 95% t interval."""
    lines = [f"| arm | learning rate | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = [row for row in rows if row["arm"] == arm]
        cells = []
        for column in COLUMNS:
            values = [row["final"][column] for row in found]
            if None in values:
                cells.append("-")
                continue
            interval, digits = mean_interval(values), 5 if column == "illegal" else 3
            cell = f"{interval.estimate:.{digits}f}"
            cells.append(
                cell if len(found) < 2 else f"{cell} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
            )
        rate = found[0]["learning_rate"]
        lines.append(f"| {arm} | {'-' if rate is None else f'{rate:g}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tuning_table(rows: list[dict]) -> str:
    """Exploitability by arm and learning rate."""
    lines = [f"| arm | {' | '.join(f'{rate:g}' for rate in TUNED_OVER)} |", "|---" * (len(TUNED_OVER) + 1) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = {row["learning_rate"]: f"{row['final']['exploitability']:.3f}" for row in rows if row["arm"] == arm}
        lines.append(f"| {arm} | {' | '.join(cells[rate] for rate in TUNED_OVER)} |")
    return "\n".join(lines)


def figure(rows: list[dict], path: Path) -> None:
    """Curves over training: mean over seeds, with a band from the least to the greatest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(2, 3, figsize=(14, 7.5), constrained_layout=True)
    for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=True):
        for arm, colour in zip(ARMS, COLOURS, strict=True):
            curves = [row["curve"] for row in rows if row["arm"] == arm]
            if not curves:
                continue
            if len(curves[0]) == 1:
                if name in ("exploitability", "turns", "illegal"):
                    level = np.mean([curve[0][name] for curve in curves])
                    axis.axhline(level, color=colour, linestyle="--", linewidth=1.4, label=arm)
                continue
            points = [p for p in range(len(curves[0])) if all(curve[p].get(name) is not None for curve in curves)]
            steps = [curves[0][p]["step"] for p in points]
            values = np.array([[curve[p][name] for p in points] for curve in curves])
            axis.plot(steps, values.mean(0), color=colour, label=arm, linewidth=1.6)
            axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("update (2,048 games each)", fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if name in ("exploitability", "grad_norm", "illegal"):
            axis.set_yscale("log")
        if name == "win_rate_vs_earlier":
            axis.axhline(0.5, color="#555555", linewidth=0.8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds to run.")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="Arms to run.")
    parser.add_argument("--max_steps", type=int, default=1500, help="Updates of each arm, with 2,048 games each.")
    parser.add_argument("--workers", type=int, default=2, help="Jobs at once, one core each.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/compare"), help="Where everything goes.")
    parser.add_argument("--tune", action="store_true", help=f"Try learning rates on seed {TUNING_SEED} instead.")
    parser.add_argument("--job", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--learning_rate", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.max_steps < EARLIER:
        parser.error(f"--max_steps is {options.max_steps}, but must be at least {EARLIER}")
    out = options.output_dir
    if options.job is not None:
        job(options.job, options.seeds[0], options.max_steps, options.learning_rate, out, options.target)
        return
    if options.tune:
        arms = [arm for arm in options.arms if arm in ("sft", "random", "fixed", "self-play")]
        wanted = [(arm, TUNING_SEED, rate) for arm in arms for rate in TUNED_OVER]
        print(tuning_table(run_jobs(wanted, options.max_steps, out, options.workers)))
        return
    rows = run_jobs(
        [(a, s, None) for a in options.arms for s in options.seeds], options.max_steps, out, options.workers
    )
    (out / "compare.json").write_text(json.dumps(rows, indent=1) + "\n")
    figure(rows, out / "compare.png")
    print(table(rows))


if __name__ == "__main__":
    main()
