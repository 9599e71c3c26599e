"""The model card of a run: the README of its repository on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figures import pictures, to_png
from .summary import Summary, summarise
from .templating import environment


PAPER = "2506.24119"


def write_model_card(metrics: Mapping[str, Any], path: str | Path, figures_dir: str | Path | None = None) -> None:
    """Writes a run's model card and, beside it, its pictures.

    Args:
        metrics (`Mapping[str, Any]`): The run's `metrics.json`; see [`~spiral_trl.hub.summary.summarise`]. Every
            figure of the card comes from there.
        path (`str` or `Path`): The file to write, as a rule `README.md`.
        figures_dir (`str` or `Path`, *optional*): Folder for the PNG pictures; `figures` beside `path` by default.

    Raises:
        ValueError: `metrics` lacks a required field, or a field has the wrong type.
    """
    from huggingface_hub import ModelCard

    path = Path(path)
    folder = path.parent / "figures" if figures_dir is None else Path(figures_dir)
    run = summarise(metrics)
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(os.path.relpath(folder, path.parent)).as_posix()
    drawn = pictures(run)
    for section in drawn.values():
        for picture in section:
            to_png(picture, folder / f"{picture.name}.png")
    body = environment().get_template("card.md.jinja").render(run=run, pictures=drawn, place=place, paper=PAPER)
    ModelCard(f"---\n{_card_data(run).to_yaml()}\n---\n\n{body}").save(path)


def _card_data(run: Summary) -> Any:
    from huggingface_hub import ModelCardData

    results = _eval_results(run)
    return ModelCardData(
        library_name="transformers",
        tags=["trl", "spiral-trl", "self-play", run.game_id, f"arxiv:{PAPER}"],
        base_model=_hub_id(run.metrics["model"]),
        model_name=run.model if results else None,
        eval_results=results or None,
    )


def _eval_results(run: Summary) -> list[Any]:
    from huggingface_hub import EvalResult

    exploitability = run.metrics.get("exploitability") or {}
    illegal = run.metrics.get("illegal_move_rate") or {}
    results = []
    if exploitability.get("final") is not None:
        unit = f", {exploitability['unit']}" if exploitability.get("unit") else ""
        name = f"exploitability ({run.method}{unit})"
        results.append(("self-play", "exploitability", name, exploitability["final"]))
    if illegal.get("final") is not None:
        results.append(("self-play", "illegal_move_rate", "share of illegal replies", illegal["final"]))
    for row in run.results:
        if row.get("win_rate") and row["win_rate"][0] is not None:
            role = row.get("role") or f"seat {row.get('seat')}"
            results.append((f"against {row['opponent']} as {role}", "win_rate", "win rate", row["win_rate"][0]))
    return [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="self-play",
            dataset_type=run.game_id,
            dataset_name=run.game,
            dataset_config=config,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for config, kind, name, value in results
    ]


def _hub_id(model: Mapping[str, Any]) -> str | None:
    """The base model where it is an id on the Hub, and not a folder or a model built from a config."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = model.get("base_model")
    if not isinstance(name, str) or model.get("embedded") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name
