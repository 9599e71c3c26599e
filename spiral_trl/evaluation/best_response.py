"""A best response that is learned by playing: a stated lower bound for games that are too large for an exact one.

Against a player that does not change, the other seat faces a decision problem of its own: its information sets, and how
often each of its actions there leads to which next one, or to the end. [`train_best_response`] samples that problem by
playing, and solves what it has seen of it: the value of an action is the mean of the returns that ended the game, and
of the values of the information sets that came next; the value of an information set is that of its best action. It
asks the player for nothing but replies.

What it then wins on fresh deals, where its luck in training counts for nothing, is a **lower bound** on exploitability
up to sampling noise, and no more than that: a best response wins at least as much, and in a large game far more. Against
uniformly random play of Leduc poker (exploitability 2.374 chips) 5,000 games of learning find about 1.9, and 20,000
about 2.1. [`~spiral_trl.evaluation.exploitability.exploitability_lower_bound`] does both and gives the interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..games.chance import derive_seeds
from ..games.registry import canonical_name, make_game
from ..players.base import Player
from ..players.bots import PolicyPlayer
from ..records import Episode, Turn
from ..rollout import MAX_TURNS, play


# Keeps the deals that are learned from apart from those that are measured on.
_TRAINING = 0x62727472
# Half of the moves explore at an information set that has seen so many visits for each of its actions.
_EXPLORED = 10
# Games of one batch: what was learned from them is used from the next batch on.
_BATCH = 256


@dataclass
class _Action:
    """What one action at an information set has led to. `total` adds up the returns of games that ended, and the values
    of the information sets that came next, as they were when last come to."""

    visits: int = 0
    total: float = 0.0
    next: dict[str, tuple[int, float]] = field(default_factory=dict)  # visits, and the value counted in `total`

    @property
    def mean(self) -> float:
        return self.total / self.visits


class BestResponsePlayer(PolicyPlayer):
    """What [`train_best_response`] has learned. It plays the best action that it has seen at each information set, and
    uniformly where it has never been.

    Attributes:
        episodes (`int`): Games that it has learned from, in both seats together.
        exploring (`bool`): Whether it plays others too: a share `e / (e + n)` of its moves is uniform where `n` is the
            number of visits of the information set, and `e` is 10 for each legal action.
    """

    name = "best_response"

    def __init__(self) -> None:
        self.episodes = 0
        self.exploring = False
        self._seen: dict[str, dict[str, _Action]] = {}

    def action_probabilities(self, turn: Turn) -> dict[str, float]:
        """Probability of each legal action. Games with free-text actions have no list to choose from: `ValueError`."""
        if not turn.legal_actions:
            raise ValueError(f"{self.name} cannot play {turn.game}: its actions are free text")
        legal = turn.legal_actions
        seen = self._seen.get(_key(turn), {})
        if not seen:
            return dict.fromkeys(legal, 1 / len(legal))
        best = max(seen, key=lambda action: seen[action].mean)
        share = 0.0
        if self.exploring:
            explored = _EXPLORED * len(legal)
            share = explored / (explored + sum(action.visits for action in seen.values()))
        return {action: share / len(legal) + (1 - share) * (action == best) for action in legal}

    def learn(self, episode: Episode, seat: int) -> None:
        """Counts one game in, in which it sat in `seat`: from the last of its moves back to the first."""
        self.episodes += 1
        steps = [step for step in episode.steps if step.turn.player == seat and step.reply.action is not None]
        following: str | None = None
        for step in reversed(steps):
            key = _key(step.turn)
            seen = self._seen.setdefault(key, {})
            action = seen.setdefault(str(step.reply.action), _Action())
            action.visits += 1
            if following is None:
                action.total += episode.returns[seat]
            else:
                visits, value = action.next.get(following, (0, 0.0))
                now = max(other.mean for other in self._seen[following].values())
                action.total += (visits + 1) * now - visits * value
                action.next[following] = (visits + 1, now)
            following = key


def _key(turn: Turn) -> str:
    """The information set; games that name none are told apart by what the seat reads."""
    if turn.infoset is not None:
        return f"{turn.player}|{turn.infoset}"
    return f"{turn.player}|{[message['content'] for message in turn.messages]}"


def train_best_response(
    player: Player, game_name: str, episodes: int, seed: int = 0, max_turns: int = MAX_TURNS
) -> BestResponsePlayer:
    """Learns to win against `player` in either seat, by playing `episodes` games with it.

    The player is asked for replies alone, in batches of 256 games. It has to stay as it is: what is learned is a
    response to the player that was met.

    Args:
        player ([`~spiral_trl.players.base.Player`]): Whom to respond to.
        game_name (`str`): Name of the game, for two players and with listed actions.
        episodes (`int`): Games, half of them in each seat.
        seed (`int`, *optional*, defaults to `0`): Deals and replies derive from it.
        max_turns (`int`, *optional*, defaults to `1000`): See [`~spiral_trl.rollout.play`].

    Raises:
        `ValueError`: If the game does not have two seats or has free-text actions, or `episodes` is less than 2.
    """
    name = canonical_name(game_name)
    if make_game(name).num_players != 2:
        raise ValueError(f"A best response is learned in games of two players; {name} has others.")
    if episodes < 2:
        raise ValueError(f"`episodes` has to be at least 2 games, one in each seat, not {episodes!r}.")
    responder = BestResponsePlayer()
    responder.exploring = True
    for seat in range(2):
        seating = [responder, player] if seat == 0 else [player, responder]
        games = (episodes + 1 - seat) // 2
        for start in range(0, games, _BATCH):
            numbers = np.arange(start, min(games, start + _BATCH))
            batch = play(name, seating, derive_seeds(seed, _TRAINING, seat, numbers), max_turns=max_turns)
            for episode in batch.episodes():
                responder.learn(episode, seat)
    responder.exploring = False
    return responder
