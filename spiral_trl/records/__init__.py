"""What was asked, what was answered, and how the game ended: the records every other module passes on.

A [`Turn`] is what one seat is asked, a [`Reply`] what it answered, an [`Episode`] one finished game. An
[`EpisodeBatch`] holds many games in columns: each distinct (turn, reply) pair is stored once and referred to by index,
which is what makes thousands of small games a step affordable. Both forms convert into each other without loss, and
to and from a [`~datasets.Dataset`].

Axes used in shapes throughout the package: `G` games (episodes), `P` players (seats), `T` turns of all games together,
`S` distinct samples, that is (turn, reply) pairs.
"""

from .batch import BatchBuilder, EpisodeBatch, Outcomes
from .episode import ENDINGS, Ending, Episode, Message, Parsed, Reply, Step, Turn
from .storage import dataset_to_episodes, episodes_to_dataset


__all__ = [
    "ENDINGS",
    "BatchBuilder",
    "Ending",
    "Episode",
    "EpisodeBatch",
    "Message",
    "Outcomes",
    "Parsed",
    "Reply",
    "Step",
    "Turn",
    "dataset_to_episodes",
    "episodes_to_dataset",
]
