"""Recorded games played again: what stored turns lack is the state behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..games.base import Game
from ..games.registry import make_game
from ..records import Episode, Step, Turn
from .illegal import random_legal


def replay(episode: Episode) -> Iterator[tuple[Game, Turn, Step]]:
    """The steps of a recorded game, each with the game as it stood.

    Args:
        episode ([`~spiral_trl.records.Episode`]): A game that was played here or is stored.

    Yields:
        `tuple[Game, Turn, Step]`: The game, standing at the turn until the next is asked for; the turn as the game asks
        it, with its state but without complaints about illegal replies; and the step as it was recorded.

    Raises:
        `ValueError`: If the episode does not follow the game's rules.
    """
    game = make_game(episode.game)
    game.reset(episode.seed)
    at = 0
    while at < len(episode.steps):
        asked = {} if game.ending is not None else {turn.player: turn for turn in game.turns()}
        actions: dict[int, str] = {}
        while at < len(episode.steps) and len(actions) < len(asked):
            step = episode.steps[at]
            player = step.turn.player
            turn = asked.get(player)
            if turn is None or player in actions or not reads_as(step.turn, turn):
                raise _unruly(episode, step)
            at += 1
            yield game, turn, step
            action = step.reply.action
            if action is None and not _asked_again(turn, episode.steps[at:], len(asked)):
                action = random_legal(replace(turn, seed=episode.seed, index=step.turn.index))
            if action is not None:
                actions[player] = action
        if not asked:
            raise _unruly(episode, episode.steps[at])
        # An illegal reply may have ended the game with seats unanswered
        if len(actions) == len(asked):
            game.step(actions)


def _unruly(episode: Episode, step: Step) -> ValueError:
    return ValueError(
        f"An episode of {episode.game} (seed {episode.seed}) does not follow the game's rules at turn "
        f"{step.turn.index}."
    )


def _asked_again(turn: Turn, following: Sequence[Step], seats: int) -> bool:
    """Whether a seat whose reply was illegal was asked once more, or the game ended by it."""
    if not following:
        return True
    # Of seats that are asked at once the others may come between
    near = (step.turn for step in following[:seats] if step.turn.player == turn.player)
    return any(reads_as(other, turn) for other in near)


def reads_as(asked: Turn, turn: Turn) -> bool:
    """Whether `asked` is `turn`, which a complaint about an illegal reply may follow."""
    last = len(turn.messages) - 1
    return (
        (asked.player, asked.legal_actions, asked.infoset) == (turn.player, turn.legal_actions, turn.infoset)
        and len(asked.messages) > last
        and asked.messages[:last] == turn.messages[:last]
        and asked.messages[last]["content"].startswith(turn.messages[last]["content"].rstrip())
    )
