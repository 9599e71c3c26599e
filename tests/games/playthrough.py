"""Whole games as text, for golden playthroughs: what each seat read and did."""

import os
from pathlib import Path

from spiral_trl.games import make_game
from spiral_trl.games.chance import derive_seeds


PLAYTHROUGHS = Path(__file__).parent / "playthroughs"


def transcript(name, seed):
    """A game by a policy that depends on the seed and the turn alone."""
    game = make_game(name)
    game.reset(seed)
    lines = [f"# {game.name}, seed {seed}, worst returns {game.worst_returns}"]
    while game.turns():
        (turn,) = game.turns()
        action = turn.legal_actions[derive_seeds(seed, turn.index) % len(turn.legal_actions)]
        lines += [
            "",
            f"## turn {turn.index}: {turn.role}, infoset {turn.infoset!r}, legal {', '.join(turn.legal_actions)}",
            *(f"{message['role']}: {message['content']}" for message in turn.messages),
            f"-> {action}",
        ]
        game.step({turn.player: action})
    lines += ["", f"## {game.ending.value}, returns {game.returns()}", ""]
    return "\n".join(lines)


def golden(file, name, seed):
    """The transcript, and what the file holds. UPDATE_PLAYTHROUGHS=1 writes it anew; then read the difference."""
    text = transcript(name, seed)
    if os.environ.get("UPDATE_PLAYTHROUGHS"):
        (PLAYTHROUGHS / file).write_text(text, encoding="utf-8")
    return text, (PLAYTHROUGHS / file).read_text(encoding="utf-8")
