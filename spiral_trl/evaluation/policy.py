"""What a player does at every turn of a small game: its policy as a table of action probabilities.

Three ways to fill the table: [`bot_policy`] asks a player that knows its own probabilities, [`exact_policy`] adds up
the token probabilities of every reply of a language model, and [`sampled_policy`] counts sampled replies.

Axes: `U` distinct turns and `A` actions of the game's table, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from ..games.chance import derive_seeds
from ..games.table import GameTable
from ..players.base import Player
from ..records import Turn


# Most next-token probabilities held at once: bounds the memory of large vocabularies.
_CHUNK = 2**22
# Most continuations compared at once, for the same reason.
_CONTINUATIONS = 2**24
# Replies that are sampled for each turn
DEFAULT_SAMPLES = 128
# Forward rows that the exact policy of a game with few turns may compute
_MIN_ROWS = 10_000
# Replies that may be read for each forward row that may be computed.
_REPLIES_PER_ROW = 20


@runtime_checkable
class TokenPlayer(Protocol):
    """A player whose token probabilities can be computed: what [`exact_policy`] needs of a language model.

    `plain_sampling` says whether replies are drawn from the model's own distribution: at temperature 1, without top-k,
    top-p, min-p, penalties or other changes.
    """

    name: str
    eos_token_ids: frozenset[int]
    vocab_size: int
    max_new_tokens: int
    plain_sampling: bool

    def prompt_ids(self, turn: Turn) -> tuple[int, ...]:
        """Token ids of the prompt for `turn`."""
        ...

    def next_token_probs(self, prefixes: Sequence[Sequence[int]]) -> np.ndarray:
        """`[n, V]` next-token probabilities (float64) after each prefix."""
        ...

    def decode(self, completion_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens skipped."""
        ...


@runtime_checkable
class ProbabilityPlayer(Protocol):
    """A player that knows its own action probabilities, such as a bot or a solver."""

    name: str

    def action_probabilities(self, turn: Turn) -> Mapping[str, float]:
        """Probability of each legal action at `turn`."""
        ...


@dataclass(frozen=True, eq=False)
class PolicyTable:
    """Action probabilities at every turn of a game's table.

    Args:
        probabilities (`np.ndarray`): `[U, A]` probability of each action of the table; 0 where it is not legal.
        illegal (`np.ndarray`): `[U]` probability of a reply that is no legal action. With `probabilities`, rows sum
            to 1.
        unexplored (`np.ndarray`): `[U]` the part of `illegal` that was never read: replies too improbable to follow.
        samples (`int`, *optional*): Replies sampled for each turn; `None` where the probabilities are exact.
    """

    probabilities: np.ndarray
    illegal: np.ndarray
    unexplored: np.ndarray
    samples: int | None = None

    def check(self, table: GameTable) -> None:
        """Raises `ValueError` where this is no policy on `table`."""
        legal = legal_mask(table)
        if self.probabilities.shape != legal.shape or self.illegal.shape != legal.shape[:1]:
            raise ValueError(
                f"A policy of {table.name} has probabilities of shape {legal.shape} and illegal mass of shape "
                f"{legal.shape[:1]}, not {self.probabilities.shape} and {self.illegal.shape}."
            )
        total = self.probabilities.sum(1) + self.illegal
        # A comparison with NaN is false, so NaN is refused too
        if not (
            (self.probabilities >= 0).all()
            and (self.illegal >= 0).all()
            and (np.abs(total - 1) <= 1e-9).all()
            and (self.probabilities[~legal] == 0).all()
        ):
            raise ValueError(
                f"A policy of {table.name} has non-negative rows that sum to 1 with the illegal mass, and no mass on "
                "actions that are not legal."
            )


@lru_cache(maxsize=32)
def legal_mask(table: GameTable) -> np.ndarray:
    """`[U, A]` which actions of the table are legal at each turn."""
    columns = {action: column for column, action in enumerate(table.actions)}
    mask = np.zeros((len(table.turns), len(table.actions)), dtype=bool)
    for row, turn in enumerate(table.turns):
        mask[row, [columns[action] for action in turn.legal_actions or ()]] = True
    mask.flags.writeable = False
    return mask


@lru_cache(maxsize=200_000)
def _read(table: GameTable, turn: int, text: str) -> int:
    """Column of the action that the game reads in `text`, or -1. Remembered: short replies recur over a whole run."""
    action = table.games[turn].parse(table.turns[turn].player, text).action
    return -1 if action is None else table.actions.index(action)


def bot_policy(player: ProbabilityPlayer, table: GameTable) -> PolicyTable:
    """The policy of a player that knows its own probabilities."""
    columns = {action: column for column, action in enumerate(table.actions)}
    probabilities = np.zeros((len(table.turns), len(table.actions)))
    for row, turn in enumerate(table.turns):
        for action, probability in player.action_probabilities(turn).items():
            probabilities[row, columns[action]] = probability
    nothing = np.zeros(len(table.turns))
    policy = PolicyTable(probabilities, nothing, nothing)
    policy.check(table)
    return policy


def sampled_policy(player: Player, table: GameTable, samples: int = DEFAULT_SAMPLES, seed: int = 0) -> PolicyTable:
    """The policy as frequencies of sampled replies.

    Frequencies are unbiased, but what is computed from them by maximising, such as exploitability, is biased upwards.

    Args:
        player ([`~spiral_trl.players.base.Player`]): Any player; it replies with its own sampling settings.
        table ([`~spiral_trl.games.table.GameTable`]): The game.
        samples (`int`, *optional*, defaults to `128`): Replies for each of the table's turns.
        seed (`int`, *optional*, defaults to `0`): Replies of the players of this package derive from it.
    """
    if samples < 1:
        raise ValueError(f"`samples` has to be at least 1 reply for each turn, not {samples!r}.")
    size = len(table.turns)
    which = np.repeat(np.arange(size), samples)
    seeds = derive_seeds(seed, np.arange(len(which)))
    replies, given = player.sample(table.turns, which, seeds, np.zeros(len(which), dtype=np.int64))
    turn_of = np.zeros(len(replies), dtype=np.int64)
    turn_of[given] = which
    column = np.array([_read(table, int(u), reply.text) for u, reply in zip(turn_of, replies, strict=True)])
    counts = np.zeros((size, len(table.actions) + 1))
    np.add.at(counts, (which, column[given]), 1)  # column -1 is the last
    return PolicyTable(counts[:, :-1] / samples, counts[:, -1] / samples, np.zeros(size), samples)


class TooManyRepliesError(ValueError):
    """The replies of a model spread over more token sequences than may be followed."""


def exact_policy(
    player: TokenPlayer, table: GameTable, tolerance: float = 1e-4, max_rows: int | None = None
) -> PolicyTable:
    """The policy of a language model from its own token probabilities.

    The probability of an action at a turn is that of all token sequences that the game reads as the action: those
    that end with an end-of-sequence token, and those cut at `max_new_tokens`, which are read like any other. Sequences
    with common beginnings share them, all turns advance together, and at each position the least probable
    continuations are dropped, at most `tolerance` for each turn altogether. What was dropped is reported as
    `unexplored` and counted as illegal, so no probability is overstated and none is understated by more than
    `tolerance`.

    Args:
        player ([`TokenPlayer`]):
            A language model that samples from its own distribution: at temperature 1, without top-k, top-p, min-p or
            penalties.
        table ([`~spiral_trl.games.table.GameTable`]):
            The game.
        tolerance (`float`, *optional*, defaults to `1e-4`):
            Most probability that may stay unread at a turn.
        max_rows (`int`, *optional*):
            Most prefixes that are computed, and, times 20, most replies that are read. By default as many as the
            sampled estimate would draw replies, 128 for each turn, and at least 10,000.

    Raises:
        [`TooManyRepliesError`]: If `max_rows` does not suffice.
        `ValueError`: If the player samples from a changed distribution, or the tolerance is not in (0, 1).
    """
    if not player.plain_sampling:
        raise ValueError(
            f"The exact policy is that of sampling at temperature 1 without top-k, top-p, min-p or penalties, but "
            f"{player.name!r} changes its distribution. Use sampled_policy."
        )
    if not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` has to lie between 0 and 1, not {tolerance!r}.")
    size, length = len(table.turns), player.max_new_tokens
    if max_rows is None:
        max_rows = max(_MIN_ROWS, DEFAULT_SAMPLES * size)
    ends = np.zeros(player.vocab_size, dtype=bool)
    ends[[token for token in player.eos_token_ids if token < player.vocab_size]] = True
    prompts = [player.prompt_ids(turn) for turn in table.turns]

    counts = np.zeros((size, len(table.actions) + 1))  # the last column: illegal
    dropped = np.zeros(size)
    turn = np.arange(size)
    completions: list[tuple[int, ...]] = [()] * size
    mass = np.ones(size)
    rows = replies = 0
    for position in range(length):
        rows += len(completions)
        if rows > max_rows:
            raise _too_many(player, table, max_rows)
        prefixes = [(*prompts[u], *completion) for u, completion in zip(turn, completions, strict=True)]
        # Each position may drop as much as any other; what one does not need, the next ones may use
        allowance = tolerance * (position + 1) / length - dropped
        children = _likely_children(player, prefixes, turn, mass, allowance, dropped)
        if children is None or len(children[0]) > max_rows * _REPLIES_PER_ROW - replies:
            raise _too_many(player, table, max_rows)
        parent, token, child_mass = children
        over = ends[token] if position < length - 1 else np.ones(len(token), dtype=bool)
        replies += int(over.sum())
        for at in np.flatnonzero(over):
            u = int(turn[parent[at]])
            text = player.decode((*completions[parent[at]], int(token[at])))
            counts[u, _read(table, u, text)] += child_mass[at]
        going = np.flatnonzero(~over)
        completions = [(*completions[parent[at]], int(token[at])) for at in going]
        turn, mass = turn[parent[going]], child_mass[going]
        if not len(going):
            break
    probabilities = counts[:, :-1]
    illegal = np.maximum(0.0, 1.0 - probabilities.sum(1))
    return PolicyTable(probabilities, illegal, dropped)


def _likely_children(
    player: TokenPlayer,
    prefixes: Sequence[tuple[int, ...]],
    turn: np.ndarray,
    mass: np.ndarray,
    allowance: np.ndarray,
    dropped: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The continuations of `prefixes` by one token, without the least probable ones of each turn.

    Drops at most `allowance` (`[U]`) of each turn's mass, and adds what it dropped to `dropped` (`[U]`), in place.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: Index of the prefix, token and probability of each continuation;
        `None` where there are too many to compare.
    """
    rest = np.zeros(len(allowance))
    siblings = np.bincount(turn, minlength=len(allowance)) * player.vocab_size
    # All continuations of a turn below its floor together are within the allowance
    floor = np.maximum(allowance, 0.0) / np.maximum(siblings, 1)
    parents, tokens, masses, found = [], [], [], 0
    step = max(1, _CHUNK // player.vocab_size)
    for start in range(0, len(prefixes), step):
        part = slice(start, start + step)
        joint = player.next_token_probs(prefixes[part]) * mass[part, None]  # (n, V)
        keep = joint > floor[turn[part], None]
        rest += np.bincount(turn[part], np.where(keep, 0.0, joint).sum(1), minlength=len(rest))
        row, token = np.nonzero(keep)
        parents.append(row + start)
        tokens.append(token)
        masses.append(joint[row, token])
        found += len(row)
        if found > _CONTINUATIONS:
            return None
    parent, token, child = np.concatenate(parents), np.concatenate(tokens), np.concatenate(masses)

    order = np.lexsort((child, turn[parent]))
    owner = turn[parent[order]]
    cumulative = np.cumsum(child[order])
    first = np.searchsorted(owner, np.arange(len(allowance)))
    before = np.concatenate([[0.0], cumulative])[first]
    drop = cumulative - before[owner] <= (allowance - rest)[owner]
    rest += np.bincount(owner[drop], child[order][drop], minlength=len(rest))
    dropped += rest
    kept = np.sort(order[~drop])
    return parent[kept], token[kept], child[kept]


def _too_many(player: TokenPlayer, table: GameTable, max_rows: int) -> TooManyRepliesError:
    return TooManyRepliesError(
        f"The replies of {player.name!r} to {table.name} spread over more token sequences than max_rows={max_rows} "
        "allows. Use the sampled estimate (samples=128), or allow more rows."
    )
