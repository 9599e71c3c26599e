"""What the embedded model must know of a game's compact form: its words, and how long prompts and replies get.

A word here is what stands between spaces: the embedded model's tokenizer splits there and nowhere else. Replies are
actions in brackets, so that `[1 x 5]` is the three words `[1`, `x` and `5]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..games.kuhn_poker import RANKS
from ..games.registry import parse_name
from ..names import unknown


@dataclass(frozen=True)
class CompactForm:
    """The compact form of a game.

    Args:
        words (`tuple[str, ...]`): Every word of its observations and of replies with legal actions.
        prompt (`int`): Most words of an observation.
        reply (`int`): Most words of a reply.
    """

    words: tuple[str, ...]
    prompt: int
    reply: int


def _kuhn(values: Mapping[str, Any]) -> CompactForm:
    words = ("card", *RANKS[-values["cards"] :], "history", "none", "check", "bet")
    return CompactForm((*words, *_bracketed("check", "bet", "call", "fold")), prompt=4 + 3, reply=2)


def _leduc(values: Mapping[str, Any]) -> CompactForm:
    words = ("card", "J", "Q", "K", "first", "public", "second", "none", "check", "call", "raise")
    # A round is at most check, raise, raise, and the call that ends it
    return CompactForm((*words, *_bracketed("check", "call", "raise", "fold")), prompt=4 + 1 + 4 + 2 + 1 + 3, reply=2)


def _liars_dice(values: Mapping[str, Any]) -> CompactForm:
    counts, faces = range(1, 2 * values["numdice"] + 1), range(1, values["dice_sides"] + 1)
    bids = [*map(str, sorted({*counts, *faces})), "x", *(f"[{count}" for count in counts), *(f"{f}]" for f in faces)]
    words = ("dice", "bids", "none", *bids, "[liar]")
    return CompactForm(words, prompt=3 + values["numdice"] + 1 + 3 * len(counts) * len(faces), reply=3)


def _board(cells: int, actions: int) -> CompactForm:
    return CompactForm(("board", "X", "O", ".", *_bracketed(*map(str, range(actions)))), prompt=3 + cells, reply=1)


def _pig(values: Mapping[str, Any]) -> CompactForm:
    width = len(str(values["target"]))
    words = ("turn", "own", "next", *map(str, range(10)), *_bracketed("roll", "hold"))
    return CompactForm(words, prompt=2 + (1 + width) * (1 + values["players"]), reply=1)


def _negotiation(values: Mapping[str, Any]) -> CompactForm:
    if values["resources"] != 2 or values["talk"] != "hidden":
        raise ValueError(
            "The embedded model reads simple_negotiation(resources=2,observation=compact) with talk=hidden: other "
            "numbers of resources show numbers without bound, and talk shows any word."
        )
    # Of 20 units of each resource between the players, worth 5 and 15, as simple_negotiation deals 2 resources
    numbers = sorted({*range(max(20, values["max_turns"]) + 1), *range(-200, 201, 5)})
    resources = ("wood", "gold", "nothing")
    words = ("left", *resources, "at", "gain", "offer", "none", "->", "+", *map(str, numbers))
    replies = ("[offer:", *(f"{name}]" for name in resources), *_bracketed("accept", "deny", "pass"))
    # Both resources may stand on both sides: 2 wood + 1 gold -> 1 wood + 2 gold
    return CompactForm((*words, *replies), prompt=4 + 2 * 4 + 2 + 1 + 11, reply=1 + 11)


def _bracketed(*actions: str) -> tuple[str, ...]:
    return tuple(f"[{action}]" for action in actions)


_FORMS: dict[str, Callable[[Mapping[str, Any]], CompactForm]] = {
    "kuhn_poker": _kuhn,
    "leduc_poker": _leduc,
    "liars_dice": _liars_dice,
    "tic_tac_toe": lambda values: _board(values["size"] ** 2, values["size"] ** 2),
    "connect_four": lambda values: _board(values["rows"] * values["columns"], values["columns"]),
    "pig": _pig,
    "simple_negotiation": _negotiation,
}


def compact_form(game: str) -> CompactForm:
    """The compact form of a game.

    Raises:
        `ValueError`: If the game is unknown, is not in its compact form, or has none that the embedded model can read.
    """
    name, values = parse_name(game)
    if name not in _FORMS:
        raise unknown("game of the embedded model", name, _FORMS)
    if values["observation"] != "compact":
        raise ValueError(
            f"The embedded model reads only the compact observation: play {name}(observation=compact), not {game}, or "
            "choose another model."
        )
    form = _FORMS[name](values)
    players = tuple(str(player) for player in range(values.get("players", 2)))
    return CompactForm(("player", *players, *form.words), form.prompt, form.reply)


def compact_words(games: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """The words of several games' compact forms beyond those that are `known`, each once, in a fixed order."""
    words = dict.fromkeys(word for game in games for word in compact_form(game).words)
    return tuple(word for word in words if word not in set(known))
