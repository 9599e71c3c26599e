"""What the free bets of the released Kuhn poker teach: the released rules against the right ones.

    python recipes/free_bet.py --seeds 0 1 2 --output_dir outputs/free_bet

Under the released rules (`kuhn_poker(rules=spiral)`) a bet and a call move no chip, so that a bluff costs nothing and
folding gains nothing. Two parts:

- theory: an equilibrium of a hand under each of the two rules, by CFR+ on the game's table, and how exploitable each is
  under both. Equilibria are not unique; the ones shown are those that CFR+ finds from uniformly random play.
- training: the embedded model under each of the two rules, by recipes/kuhn.py with the same budget, then measured under
  both.

Under the released rules player 1 opens the hand. What a seat does is carried over to the seat that acts in the same
order: opener to opener.

Prints one Markdown table, and writes every figure to `free_bet.json`. A run whose folder holds a `metrics.json` is not
run again. Flags after `--` go to recipes/kuhn.py.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from spiral_trl.evaluation.exploitability import exploitability
from spiral_trl.evaluation.policy import PolicyTable
from spiral_trl.games.sequence_form import sequence_form, solve
from spiral_trl.games.table import DECISION, GameTable, tabulate


GAMES = {"right": "kuhn_poker(observation=compact)", "released": "kuhn_poker(rules=spiral,observation=compact)"}
CARDS = ("J", "Q", "K")

# Probability of each action by information set, as the opener ("0") and the other player ("1") of a hand see it
Strategy = dict[str, dict[str, float]]


def table_of(rules: str) -> GameTable:
    table = tabulate(GAMES[rules])
    assert table is not None
    return table


def place(rules: str, infoset: str) -> str:
    """An information set with the order of acting in place of the seat: player 1 opens under the released rules."""
    seat, _, rest = infoset.partition("|")
    return f"{int(seat) ^ (rules == 'released')}|{rest}"


def policy_of(strategy: Strategy, rules: str) -> PolicyTable:
    """The policy on the table of one of the two rules. What is missing to 1 is the probability of an illegal reply."""
    table = table_of(rules)
    probabilities = np.zeros((len(table.turns), len(table.actions)))
    for row, turn in enumerate(table.turns):
        for action, probability in strategy[place(rules, turn.infoset or "")].items():
            probabilities[row, table.actions.index(action)] = probability
    return PolicyTable(probabilities, np.maximum(0.0, 1.0 - probabilities.sum(1)), np.zeros(len(table.turns)))


def equilibrium_of(rules: str) -> Strategy:
    table = table_of(rules)
    solution = solve(table, tolerance=1e-5, max_iterations=100_000)
    return {
        place(rules, turn.infoset or ""): {
            action: float(solution[row, table.actions.index(action)]) for action in turn.legal_actions or ()
        }
        for row, turn in enumerate(table.turns)
    }


def uniform() -> Strategy:
    return {
        place("right", turn.infoset or ""): dict.fromkeys(turn.legal_actions or (), 0.5)
        for turn in table_of("right").turns
    }


def trained(rules: str, metrics: dict) -> Strategy:
    """The final strategy of a run."""
    return {
        place(rules, row["infoset"]): dict(zip(row["actions"], row["final"], strict=True))
        for row in metrics["strategy"]
    }


def figures_of(strategy: Strategy) -> dict[str, float | None]:
    """Exploitability and value under both rules, and how often the strategy bluffs, folds and calls.

    A card's frequency facing a bet is over the two places where its holder can face one, each as often as the strategy
    meets it against itself; None where it never does.
    """
    figures: dict[str, float | None] = {}
    for rules in GAMES:
        measured = exploitability(table_of(rules), policy_of(strategy, rules))
        assert measured.exploitability is not None
        figures[f"exploitability_{rules}"] = measured.exploitability
        figures[f"value_{rules}"] = measured.value[rules == "released"]  # to the opener
        figures["illegal"] = measured.illegal_mass
    figures["bluff_open"] = strategy["0|J|"]["bet"]
    figures["bluff_after_check"] = strategy["1|J|check"]["bet"]
    met = visits(strategy)
    for card in CARDS:
        faced = [where for where in strategy if where[1:] in (f"|{card}|check bet", f"|{card}|bet")]
        total = sum(met[where] for where in faced)
        for action in ("fold", "call"):
            chosen = sum(met[where] * strategy[where][action] for where in faced)
            figures[f"{action}_{card}"] = chosen / total if total else None
    return figures


def visits(strategy: Strategy) -> dict[str, float]:
    """How often a strategy meets each information set in a hand against itself."""
    table = table_of("right")
    nodes = np.flatnonzero(table.kind == DECISION)
    reach = sequence_form(table).reach(policy_of(strategy, "right").probabilities)[:, nodes].prod(0)
    met = np.bincount(table.turn[nodes], reach)
    return {turn.infoset or "": float(met[row]) for row, turn in enumerate(table.turns)}


def run(rules: str, seed: int, folder: Path, steps: int, extra: list[str]) -> dict:
    """Figures of one run, training it where they are not there yet."""
    if not (folder / "metrics.json").is_file():
        flags = f"--seed {seed} --max_steps {steps} --save_steps 500 --compare_plain false".split()
        recipe = Path(__file__).with_name("kuhn.py")
        command = [sys.executable, str(recipe), "--games", GAMES[rules], "--output_dir", str(folder), *flags, *extra]
        # An earlier run without metrics was cut off: go on from its last checkpoint
        if any(folder.glob("checkpoint-*/self_play_state.json")):
            command += ["--resume_from_checkpoint", "true"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((folder / "metrics.json").read_text())
    found = (metrics["game"], metrics["seed"], metrics["training"]["max_steps"])
    if found != (GAMES[rules], seed, steps):
        raise SystemExit(
            f"error: {folder} holds a run of {found[0]} with seed {found[1]} and {found[2]} steps, not of "
            f"{GAMES[rules]} with seed {seed} and {steps} steps; choose another --output_dir"
        )
    return metrics


COLUMNS = {
    "exploitability_right": "exploitability, right rules",
    "exploitability_released": "exploitability, released rules",
    "value_right": "value to the opener, right rules",
    "bluff_open": "J bets first",
    "bluff_after_check": "J bets after a check",
    **{f"{action}_{card}": f"{card} {action}s" for action in ("fold", "call") for card in CARDS},
}


def table(rows: list[dict]) -> str:
    """One line for each strategy; a trained one has the mean over its seeds, with the least and the greatest."""
    lines = [f"| strategy | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in dict.fromkeys(row["strategy"] for row in rows):
        found = [row for row in rows if row["strategy"] == name]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in found if row[column] is not None]
            cell = f"{np.mean(values):.3f}" if values else "-"
            cells.append(f"{cell} ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else cell)
        title = name if len(found) == 1 else f"{name}, {len(found)} seeds"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], help="Seeds to train; none for theory only."
    )
    parser.add_argument("--max_steps", type=int, default=1500, help="Optimiser steps of each run.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/free_bet"), help="Folder of the runs.")
    parser.add_argument("extra", nargs="*", help="Flags for recipes/kuhn.py, after --.")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)

    rows: list[dict] = []

    def add(name: str, strategy: Strategy, seed: int | None = None) -> None:
        rows.append({"strategy": name, "seed": seed, **figures_of(strategy), "probabilities": strategy})
        written = {"games": GAMES, "max_steps": options.max_steps, "rows": rows}
        (options.output_dir / "free_bet.json").write_text(json.dumps(written, indent=2) + "\n")

    add("uniformly random", uniform())
    for rules in GAMES:
        add(f"equilibrium of the {rules} rules", equilibrium_of(rules))
    for seed in options.seeds:
        for rules in GAMES:
            folder = options.output_dir / f"{rules}-{seed}"
            metrics = run(rules, seed, folder, options.max_steps, options.extra)
            add(f"trained under the {rules} rules", trained(rules, metrics), seed)
    print(table(rows))


if __name__ == "__main__":
    main()
