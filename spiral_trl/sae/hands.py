"""Pairs of hands from recorded games, and what a model does with one hand when features are swapped with the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..errors import UsageError
from ..evaluation.policy import PolicyTable, TooManyRepliesError, exact_policy
from ..games.base import Game
from ..games.table import GameTable
from ..players.language_model import LanguageModelPlayer, evaluating
from ..prefix_sharing import left_padded, position_ids
from ..records import Episode, Turn
from ..rollout import replay
from .activations import edited_residuals, read_residuals
from .game_variables import RoleSteps


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .dictionaries import Dictionary


# From where on tokens are patched: the first at which the prompts differ, or the last of the prompt
DIFFERENCE, DECISION = SITES = ("difference", "decision")
# Most numbers of a stream that are patched at once, and first tokens less probable than this are taken together
_CHUNK = 2**25
_RARE = 1e-4
# Most probability of replies that may stay unread
_TOLERANCE = 1e-3
# Prefixes of replies for each hand, above which replies are too many
_ROWS = 64


@dataclass(frozen=True)
class Pair:
    """A hand and the one that it is swapped with: places among the turns of [`Hands`]."""

    own: int
    other: int


@dataclass(frozen=True, eq=False)
class Hands:
    """Distinct situations of recorded games, and which of them differ in the seat's own information alone.

    Args:
        turns (`tuple[Turn, ...]`): What is asked in each situation.
        games (`tuple[Game, ...]`): A game that stands there.
        roles (`tuple[int, ...]`): Number of its role among those that were given.
        pairs (`tuple[Pair, ...]`): In both directions.
    """

    turns: tuple[Turn, ...]
    games: tuple[Game, ...]
    roles: tuple[int, ...]
    pairs: tuple[Pair, ...]


def find_hands(
    roles: Sequence[RoleSteps],
    episodes: Sequence[Episode],
    game: str | None = None,
    max_pairs: int = 48,
    seed: int = 0,
) -> Hands:
    """Pairs of hands in recorded games of one kind.

    Args:
        roles (`Sequence[RoleSteps]`): What is known of the games' steps.
        episodes (`Sequence[Episode]`): The games.
        game (`str`, *optional*): Which of them; by default the first that has pairs.
        max_pairs (`int`, *optional*, defaults to `48`): Of more pairs, so many are drawn at random.
        seed (`int`, *optional*, defaults to `0`): Of that.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are none.
    """
    first: dict[tuple[int, str, str], tuple[int, int]] = {}
    for number, role in enumerate(roles):
        known = zip(role.rest, role.own, role.group.tolist(), role.step.tolist(), strict=True)
        for rest, own, group, step in known:
            if rest is not None and own is not None:
                first.setdefault((number, rest, own), (group, step))
    together: dict[tuple[int, str], list[tuple[int, str, str]]] = {}
    for key in first:
        together.setdefault(key[:2], []).append(key)
    keyed = [(one, other) for same in together.values() for one in same for other in same if one != other]
    chosen = game or next((roles[one[0]].game for one, _ in keyed), None)
    keyed = [pair for pair in keyed if roles[pair[0][0]].game == chosen]
    if not keyed:
        where = "the episodes" if game is None else f"the episodes of {game}"
        raise UsageError(f"no two situations of {where} differ in a seat's own information alone")
    if len(keyed) > max_pairs:
        drawn = np.random.default_rng(seed).choice(len(keyed), max_pairs, replace=False)
        keyed = [keyed[number] for number in sorted(drawn.tolist())]
    used = list(dict.fromkeys(key for pair in keyed for key in pair))
    stood = [_standing(episodes[first[key][0]], first[key][1]) for key in used]
    place = {key: number for number, key in enumerate(used)}
    return Hands(
        turns=tuple(turn for _, turn in stood),
        games=tuple(game for game, _ in stood),
        roles=tuple(key[0] for key in used),
        pairs=tuple(Pair(place[one], place[other]) for one, other in keyed),
    )


def _standing(episode: Episode, step: int) -> tuple[Game, Turn]:
    """A game that stands at a step of an episode, and what it asks there."""
    for number, (game, turn, _) in enumerate(replay(episode)):
        if number == step:
            return game, turn
    raise IndexError(step)


@dataclass(frozen=True, eq=False)
class Swap:
    """Features that change places between the hands of a pair, for each role by its number.

    Args:
        source (`Mapping[int, np.ndarray]`): Features whose difference of codes is added,
        target (`Mapping[int, np.ndarray]`): along the directions of these; by default their own.
    """

    source: Mapping[int, np.ndarray]
    target: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, features: Mapping[int, np.ndarray]) -> Swap:
        return cls(features, features)


class HandMoves:
    """What a model does with each hand: the distribution over its actions, or, where its replies are too many to be
    read one by one, over the first token of the reply.

    Args:
        player ([`~spiral_trl.players.language_model.LanguageModelPlayer`]): The model, sampling from its own
            distribution.
        hands ([`Hands`]): The hands.
        first_token (`bool`, *optional*, defaults to `False`): Whether to look at first tokens in any case.
    """

    def __init__(self, player: LanguageModelPlayer, hands: Hands, first_token: bool = False):
        self.player = player
        self.hands = hands
        self.prompts = [player.prompt_ids(turn) for turn in hands.turns]
        self._actions: tuple[str, ...] = ()
        self._tokens: np.ndarray | None = None
        self._newest: tuple[tuple[int, str], _Differences] | None = None
        moves = None if first_token else self._over_actions()
        if moves is None:
            moves = player.next_token_probs(self.prompts)
            self._tokens = np.flatnonzero((moves > _RARE).any(0))
            moves = _grouped(moves, self._tokens)
        # (pairs, outcomes)
        self.own = moves[[pair.own for pair in hands.pairs]]
        self.other = moves[[pair.other for pair in hands.pairs]]

    def _over_actions(self) -> np.ndarray | None:
        """`(situations, actions + 1)`, or `None` where actions are free text or replies too many."""
        turns = self.hands.turns
        if any(turn.legal_actions is None for turn in turns):
            return None
        actions = dict.fromkeys(action for turn in turns for action in turn.legal_actions or ())
        self._actions = tuple(actions)
        table = _table(turns, self.hands.games, self._actions)
        try:
            return _moves(exact_policy(self.player, table, _TOLERANCE, _ROWS * len(turns)))
        except TooManyRepliesError:
            return None

    @property
    def kind(self) -> str:
        """Over what the distributions are: `actions` or `first token`."""
        return "actions" if self._tokens is None else "first token"

    @cached_property
    def shifts(self) -> np.ndarray:
        """`(pairs,)` total variation between the two hands."""
        return np.abs(self.other - self.own).sum(1) / 2

    def sizes(self, dictionary: Dictionary, site: str) -> dict[int, np.ndarray]:
        """For each role `(F,)` how much of the stream each feature changes between the hands: the sum over patched tokens
        of the prompts, of the difference of its codes times the length of its direction."""
        differences = self._differences(dictionary, site)
        lengths = dictionary.directions.norm(dim=1).cpu().numpy()
        sizes = {role: np.zeros(dictionary.num_features) for role in self.hands.roles}
        with self.player.unwrap() as model, evaluating(model):
            differences.read(model, {(pair, ()) for pair in self.hands.pairs})
        for pair in self.hands.pairs:
            change = differences.known[pair, ()]
            by_token = change.scale.abs() * change.values.abs()
            sizes[self.hands.roles[pair.own]][change.features] += by_token.sum(0).cpu().numpy()
        return {role: size * lengths for role, size in sizes.items()}

    def _differences(self, dictionary: Dictionary, site: str) -> _Differences:
        key = dictionary.layer, site
        if self._newest is None or self._newest[0] != key:
            self._newest = key, _Differences(self.player, self.hands, self.prompts, dictionary, site)
        return self._newest[1]

    def patched(self, dictionary: Dictionary, site: str, swaps: Sequence[Swap]) -> np.ndarray:
        """`(swaps, pairs, outcomes)` the distributions with the own hand of each pair patched.

        Args:
            dictionary (`Dictionary`): The dictionary, at whose layer the stream is patched.
            site (`str`): One of [`SITES`].
            swaps (`Sequence[Swap]`): What is swapped.

        Raises:
            [`~spiral_trl.evaluation.policy.TooManyRepliesError`]: If a patch makes replies spread too far.
        """
        rows = [(pair, swap) for swap in swaps for pair in self.hands.pairs]
        player = _PatchedPlayer(self._differences(dictionary, site), rows)
        turns = [replace(self.hands.turns[pair.own], episode=number) for number, (pair, _) in enumerate(rows)]
        if self._tokens is None:
            # Rows that differ in their patch alone read the replies of the same games
            table = _table(turns, [self.hands.games[pair.own] for pair, _ in rows], self._actions)
            moves = _moves(exact_policy(player, table, _TOLERANCE, _ROWS * len(turns)))
        else:
            part = max(1, _CHUNK // player.vocab_size)
            moves = np.concatenate(
                [
                    _grouped(
                        player.next_token_probs([player.prompt_ids(turn) for turn in turns[at : at + part]]),
                        self._tokens,
                    )
                    for at in range(0, len(turns), part)
                ]
            )
        return moves.reshape(len(swaps), len(self.hands.pairs), -1)


def recovered(own: np.ndarray, other: np.ndarray, patched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""`(pairs,)` numerators and denominators of the recovered share: `<q - p, p' - p>` and `|p' - p|^2`.

    Args:
        own, other, patched (`np.ndarray`): `(pairs, outcomes)` the distributions p, p' and q.
    """
    shift = other - own
    return ((patched - own) * shift).sum(1), (shift**2).sum(1)


def _grouped(probabilities: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Probabilities of `tokens`, and of all others together."""
    kept = probabilities[:, tokens]
    return np.concatenate([kept, 1 - kept.sum(1, keepdims=True)], axis=1)


def _moves(policy: PolicyTable) -> np.ndarray:
    """`(turns, actions + 1)`: the probability of each action, and of none."""
    return np.concatenate([policy.probabilities, policy.illegal[:, None]], axis=1)


def _table(turns: Sequence[Turn], games: Sequence[Game], actions: tuple[str, ...]) -> GameTable:
    """Turns alone, without the tree between them: what [`~spiral_trl.evaluation.policy.exact_policy`] reads."""
    nothing = np.zeros(0, dtype=np.int64)
    game = games[0]
    return GameTable(
        name=game.name,
        num_players=game.num_players,
        roles=game.roles,
        worst_returns=game.worst_returns,
        actions=actions,
        turns=tuple(turns),
        games=tuple(games),
        kind=nothing,
        turn=nothing,
        player=nothing,
        child=np.zeros((0, 1), dtype=np.int64),
        cdf=np.zeros((0, 1)),
        returns=np.zeros((0, game.num_players)),
        truncated=np.zeros(0, dtype=bool),
        depth=0,
    )


class _Change(NamedTuple):
    """What changes between the hands of a pair at the patched tokens: those at the end of the row."""

    features: np.ndarray  # (k,) features whose codes differ anywhere, ascending
    values: Tensor  # (tokens, k) code of the other hand less that of the own
    scale: Tensor  # (tokens, 1)

    def effective(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of a swap that changes anything: columns of `values`, ascending, and the features along whose
        directions they are laid."""
        if not len(self.features):
            return source[:0], target[:0]
        column = np.minimum(np.searchsorted(self.features, source), len(self.features) - 1)
        there = self.features[column] == source
        order = np.argsort(column[there], kind="stable")
        return column[there][order], target[there][order]


class _Differences:
    """Differences of codes between hands, read once for each pair and reply so far."""

    def __init__(
        self,
        player: LanguageModelPlayer,
        hands: Hands,
        prompts: Sequence[tuple[int, ...]],
        dictionary: Dictionary,
        site: str,
    ):
        self.player = player
        self.hands = hands
        self.prompts = prompts
        self.dictionary = dictionary
        self.site = site
        self.known: dict[tuple[Pair, tuple[int, ...]], _Change] = {}

    def read(self, model: PreTrainedModel, wanted: set[tuple[Pair, tuple[int, ...]]]) -> None:
        new = sorted(wanted - self.known.keys(), key=lambda key: (key[0].own, key[0].other, key[1]))
        step = max(1, self.player.max_rows // 2)
        layer = self.dictionary.layer
        for start in range(0, len(new), step):
            part = new[start : start + step]
            rows = [(*self.prompts[place], *reply) for pair, reply in part for place in (pair.own, pair.other)]
            ids, mask = left_padded(rows, self.player.pad_token_id, model.device)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask)}
            streams = read_residuals(model, inputs, [layer])[layer]
            for number, (pair, reply) in enumerate(part):
                count = self._count(pair) + len(reply)
                own, other = streams[2 * number : 2 * number + 2, ids.shape[1] - count :]
                difference = self.dictionary.encode(other) - self.dictionary.encode(own)
                features = (difference != 0).any(0).nonzero()[:, 0]
                self.known[pair, reply] = _Change(
                    features.cpu().numpy(), difference[:, features], self.dictionary.scale(own)
                )

    def _count(self, pair: Pair) -> int:
        """How many tokens at the end of the prompt are patched. Tokens of the two are matched from the end."""
        if self.site == DECISION:
            return 1
        own, other = self.prompts[pair.own], self.prompts[pair.other]
        shorter = min(len(own), len(other))
        same = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), shorter)
        return max(1, shorter - same)


class _Patch(NamedTuple):
    """Tokens, and what is added to the stream at their end."""

    ids: Sequence[int]
    change: _Change
    column: np.ndarray
    target: np.ndarray


class _PatchedPlayer:
    """A model whose stream is patched; a [`~spiral_trl.evaluation.policy.TokenPlayer`].

    Prompts start with the number of a row, which `Turn.episode` carries: equal prompts are patched in many ways.

    Args:
        differences ([`_Differences`]): Between the hands.
        rows (`Sequence[tuple[Pair, Swap]]`): The patches.
    """

    plain_sampling = True

    def __init__(self, differences: _Differences, rows: Sequence[tuple[Pair, Swap]]):
        player = differences.player
        self.differences = differences
        self.rows = rows
        self.name = player.name
        self.eos_token_ids = player.eos_token_ids
        self.vocab_size = player.vocab_size
        self.max_new_tokens = player.max_new_tokens

    def prompt_ids(self, turn: Turn) -> tuple[int, ...]:
        return (turn.episode, *self.differences.prompts[self.rows[turn.episode][0].own])

    def decode(self, completion_ids: Sequence[int]) -> str:
        return self.differences.player.decode(completion_ids)

    @torch.no_grad()
    def next_token_probs(self, prefixes: Sequence[Sequence[int]]) -> np.ndarray:
        """`[n, V]` next-token probabilities (float64) after each patched prefix. What comes to the same patch of the same
        tokens is computed once."""
        differences, player = self.differences, self.differences.player
        pairs = [self.rows[prefix[0]][0] for prefix in prefixes]
        replies = [
            tuple(prefix[1 + len(differences.prompts[pair.own]) :])
            for pair, prefix in zip(pairs, prefixes, strict=True)
        ]
        with player.unwrap() as model, evaluating(model):
            differences.read(model, set(zip(pairs, replies, strict=True)))
            distinct: dict[tuple, int] = {}
            patches: list[_Patch] = []
            which = np.empty(len(prefixes), dtype=np.int64)
            for row, (prefix, pair, reply) in enumerate(zip(prefixes, pairs, replies, strict=True)):
                swap, role = self.rows[prefix[0]][1], differences.hands.roles[pair.own]
                change = differences.known[pair, reply]
                column, target = change.effective(swap.source[role], swap.target[role])
                # Unpatched, hands that are compared with different others are the same
                whose = (pair if len(column) else pair.own, reply, column.tobytes(), target.tobytes())
                which[row] = distinct.setdefault(whose, len(patches))
                if which[row] == len(patches):
                    patches.append(_Patch(prefix[1:], change, column, target))
            width = model.config.get_text_config().hidden_size
            step = max(1, min(player.max_rows, _CHUNK // (max(map(len, prefixes)) * width)))
            found = [self._patched(model, patches[start : start + step]) for start in range(0, len(patches), step)]
        return np.concatenate(found)[which]

    def _patched(self, model: PreTrainedModel, patches: Sequence[_Patch]) -> np.ndarray:
        dictionary, player = self.differences.dictionary, self.differences.player
        directions = dictionary.directions
        ids, mask = left_padded([patch.ids for patch in patches], player.pad_token_id, model.device)
        added = torch.zeros(*ids.shape, directions.shape[1], device=directions.device, dtype=directions.dtype)
        for number, (_, change, column, target) in enumerate(patches):
            if len(column):
                added[number, ids.shape[1] - len(change.values) :] = change.scale * (
                    change.values[:, column] @ directions[target]
                )
        with edited_residuals(model, {dictionary.layer: lambda stream: stream + added.to(stream)}):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids(mask),
                use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]
        return torch.softmax(logits.double(), dim=-1).cpu().numpy()
