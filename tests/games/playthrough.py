"""Whole games as text, for golden playthroughs: what each seat read and did."""

import os
from pathlib import Path

from spiral_trl.games import make_game
from spiral_trl.games.chance import REPLY, derive_seeds, uniforms


PLAYTHROUGHS = Path(__file__).parent / "playthroughs"


def next_action(turn, seed):
    """By a policy that depends on the seed and the turn alone; free text comes from the game's own sampler."""
    if turn.legal_actions is not None:
        return turn.legal_actions[int(derive_seeds(seed, turn.index) % len(turn.legal_actions))]
    return turn.state.sample_action([float(uniforms(seed, REPLY, turn.index, i)) for i in range(8)])


def transcript(name, seed, replies=()):
    """A game as text, played by `replies`, in turn, and then by [`next_action`]."""
    # OpenSpiel's games list their legal actions on a line of the prompt, whose sender is always the same
    plain = name.startswith("openspiel:")
    game = make_game(name)
    game.reset(seed)
    lines = [f"# {game.name}, seed {seed}, worst returns {game.worst_returns}"]
    replies = list(replies)
    while turns := game.turns():
        played = {}
        for turn in turns:
            legal = "" if plain or turn.legal_actions is None else f", legal {', '.join(turn.legal_actions)}"
            action = game.parse(turn.player, replies.pop(0) if replies else f"[{next_action(turn, seed)}]").action
            played[turn.player] = action
            lines += [
                "",
                f"## turn {turn.index}: {turn.role}, infoset {turn.infoset!r}{legal}",
                *(f"{'' if plain else message['role'] + ': '}{message['content']}" for message in turn.messages),
                f"-> {action}",
            ]
        game.step(played)
    return "\n".join([*lines, "", f"## {game.ending.value}, returns {game.returns()}", ""])


def check_playthrough(file, name, seed, replies=()):
    """Holds a transcript against its golden file. UPDATE_PLAYTHROUGHS=1 writes it anew; then read the difference."""
    text = transcript(name, seed, replies)
    if os.environ.get("UPDATE_PLAYTHROUGHS"):
        (PLAYTHROUGHS / file).write_text(text, encoding="utf-8")
    assert text == (PLAYTHROUGHS / file).read_text(encoding="utf-8")
