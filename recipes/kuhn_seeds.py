"""The table of several seeds: runs recipes/kuhn.py for each, or reads runs that are there, and prints Markdown.

    python recipes/kuhn_seeds.py --seeds 0 1 2 3 4 --output_dir outputs/seeds

A seed whose folder holds a `metrics.json` is not run again. Flags after `--` go to recipes/kuhn.py.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def run(seed: int, folder: Path, extra: list[str]) -> dict:
    """Figures of one seed, training it where they are not there yet."""
    if not (folder / "metrics.json").is_file():
        recipe = Path(__file__).with_name("kuhn.py")
        command = [sys.executable, str(recipe), "--seed", str(seed), "--output_dir", str(folder), *extra]
        # An earlier run without metrics was cut off: go on from its last checkpoint
        if any(folder.glob("checkpoint-*/self_play_state.json")):
            command += ["--resume_from_checkpoint", "true"]
        subprocess.run(command, check=True)
    return json.loads((folder / "metrics.json").read_text())


def table(runs: dict[int, dict]) -> str:
    """One row per seed, then mean and largest."""
    lines = [
        "| seed | exploitability before | after | after, given legal | illegal replies after | plain self-play | "
        "plain, given legal | plain, illegal replies | seconds |",
        "|---" * 9 + "|",
    ]
    columns: list[list[float]] = []
    for seed, metrics in runs.items():
        exploitability, illegal = metrics["exploitability"], metrics["illegal_move_rate"]
        row = [
            exploitability["start"],
            exploitability["final"],
            exploitability["final_given_legal"],
            illegal["final"],
            exploitability["plain"],
            exploitability["plain_given_legal"],
            illegal["plain"],
            metrics["seconds"]["total"],
        ]
        columns.append([float("nan") if value is None else value for value in row])
        lines.append(f"| {seed} | " + " | ".join(cells(columns[-1])) + " |")
    for name, reduce in (("mean", np.mean), ("largest", np.max)):
        lines.append(f"| {name} | " + " | ".join(cells(reduce(columns, axis=0))) + " |")
    return "\n".join(lines)


def cells(row) -> list[str]:
    digits = (3, 4, 4, 5, 3, 3, 5, 0)
    return ["-" if np.isnan(value) else f"{value:.{digit}f}" for value, digit in zip(row, digits, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Seeds to run.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/seeds"), help="Folder of the runs.")
    parser.add_argument("extra", nargs="*", help="Flags for recipes/kuhn.py, after --.")
    options = parser.parse_args()
    runs = {seed: run(seed, options.output_dir / str(seed), options.extra) for seed in options.seeds}
    print(table(runs))


if __name__ == "__main__":
    main()
