"""The table a run prints at its end, from its `metrics.json`."""

from __future__ import annotations

from typing import Any


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _rows(rows: list[list[str]]) -> list[str]:
    """Left-aligned first column, right-aligned others."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def format_summary(metrics: dict[str, Any]) -> str:
    """Illegal rate and exploitability before and after, strategy against equilibrium, results by seat."""
    exploitability, illegal = metrics["exploitability"], metrics["illegal_move_rate"]
    stages = ["start", "final"] + (["plain"] if exploitability["plain"] is not None else [])
    titles = {"start": "before", "final": "after", "plain": "plain self-play"}
    method = exploitability["method"]
    if exploitability["samples"] is not None:
        method += f", {exploitability['samples']} replies each, noise floor {_number(exploitability['floor'])}"
    lines = [f"{metrics['game']}, {metrics['model']['name']}, seed {metrics['seed']}"]
    if metrics["model"]["embedded"]:
        lines.append("The embedded model is built from a config and trained here; it is no pretrained model.")
    lines += [
        "",
        f"{metrics['games']:,} games, {metrics['seconds']['total']:.0f} s (plain self-play beside it not counted)",
    ]
    lines += [""] + _rows(
        [
            ["", *(titles[stage] for stage in stages)],
            [f"exploitability, {exploitability['unit']} ({method})", *(_number(exploitability[s]) for s in stages)],
            ["illegal moves, share of replies", *(_number(illegal[stage], 5) for stage in stages)],
        ]
    )
    if metrics.get("by_game"):
        header = ["game", *(f"exploitability {titles[stage]}" for stage in stages), "method"]
        rows = [[*header, *(f"illegal {titles[stage]}" for stage in stages)]]
        for game, figures in metrics["by_game"].items():
            of_game, wrong = figures["exploitability"], figures["illegal_move_rate"]
            values = [_number(of_game[stage]) for stage in stages]
            rows.append([game, *values, of_game["method"], *(_number(wrong[stage], 5) for stage in stages)])
        lines += [""] + _rows(rows)
    if metrics["strategy"]:
        header = ["information set", "action", *(titles[stage] for stage in stages), "equilibrium"]
        rows = [header]
        for row in metrics["strategy"]:
            name = f"player {row['player']}"
            if "card" in row:
                name += f", {row['card']}, after {row['history'] or 'nothing'}"
            else:
                name = str(row["infoset"])
            action = len(row["actions"]) - 1  # the other one is its complement, but for illegal replies
            known = row["equilibrium"]
            band = "-"
            if known is not None:
                low, high = known[action]
                band = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
            shown = [_number(row[stage][action], 3) if row.get(stage) else "-" for stage in stages]
            rows.append([name, row["actions"][action], *shown, band])
        lines += [""] + _rows(rows)
        if metrics["equilibrium_alpha"] is not None:
            lines.append(f"nearest equilibrium: alpha = {metrics['equilibrium_alpha']:.3f}")
    by_game = {game: figures["results"] for game, figures in (metrics.get("by_game") or {}).items()}
    for game, results in (by_game or {"": metrics["results"]}).items():
        if results:
            lines += [""] + ([game] if game else []) + _rows(_result_rows(results))
    return "\n".join(lines)


def _result_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["opponent", "seat", "games", "win rate", "95%", "mean return", "95%"]]
    for row in results:
        win, mean = row["win_rate"], row["mean_return"]
        rows.append(
            [
                row["opponent"],
                row["role"],
                str(row["games"]),
                _number(win[0], 3),
                f"{win[1]:.3f} to {win[2]:.3f}",
                _number(mean[0], 3),
                f"{mean[1]:+.3f} to {mean[2]:+.3f}",
            ]
        )
    return rows


def format_sft_summary(told: dict[str, Any]) -> str:
    """What [`~spiral_trl.training.sft.run_sft`] measured."""
    lines = [f"{told['rows']:,} decisions, {told['seconds']:.0f} s, seed {told['seed']}"]
    if told["by_game"]:
        rows = [["game", "exploitability", "unit", "method", "illegal moves"]]
        for game, figures in told["by_game"].items():
            value, illegal = _number(figures["exploitability"]), _number(figures["illegal_move_rate"], 5)
            rows.append([game, value, figures["unit"], figures["method"], illegal])
        lines += [""] + _rows(rows)
    for game, figures in told["by_game"].items():
        if figures["results"]:
            lines += ["", game, *_rows(_result_rows(figures["results"]))]
    return "\n".join(lines)
