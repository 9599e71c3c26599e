"""The page of a run: one HTML file that opens offline and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records import Episode
from .figures import pictures, to_svg
from .replay import ENDING_WORDS, choose_episodes, replay
from .summary import summarise
from .templating import environment, template_text


def write_report(metrics: Mapping[str, Any], episodes: Sequence[Episode], path: str | Path) -> None:
    """Writes a run's page.

    The page holds what was trained on what, the curves, the strategy beside the equilibrium, results by seat, and a
    dozen games to step through. `#game=3&turn=1` opens the third of these games at its first turn. Without JavaScript
    the games stand there in full. Text of models is escaped, and the script reads nothing but the document.

    Args:
        metrics (`Mapping[str, Any]`): The run's `metrics.json`; see [`~spiral_trl.hub.summary.summarise`].
        episodes (`Sequence[Episode]`): Games of the run, in order; a dozen are shown, every ending among them.
        path (`str` or `Path`): The file to write.

    Raises:
        ValueError: `metrics` lacks a required field, or a field has the wrong type.
    """
    from markupsafe import Markup

    run = summarise(metrics)
    games = [replay(episode) for episode in choose_episodes(episodes)]
    script = template_text("report.js.jinja")
    page = environment().get_template("report.html.jinja")
    text = page.render(
        run=run,
        figures={
            section: [(picture, Markup(to_svg(picture))) for picture in drawn]
            for section, drawn in pictures(run).items()
        },
        games=games,
        num_episodes=len(episodes),
        endings=[(name, ENDING_WORDS[name], n) for name, n in Counter(game["ending"] for game in games).items()],
        css=Markup(template_text("report.css.jinja")),
        script=Markup(script),
        # Only this script may run, and nothing may be fetched, even if an escape were missing somewhere.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
