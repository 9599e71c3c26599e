"""A solver that plays and says why: replies with the reasons for the action, in the format that games ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from ..games.chance import REPLY, uniforms
from ..players.base import Player
from ..players.bots import CFRPlayer, PolicyPlayer
from ..players.search import MCTSPlayer, MinimaxPlayer
from ..records import Reply, Turn
from .analysis import Analyst, EquilibriumAnalyst
from .lookahead import MinimaxAnalyst, SearchAnalyst
from .words import VARIANTS, answer, rationale


# What CFR leaves on actions that no equilibrium uses after finitely many iterations
NEGLIGIBLE = 0.01


Solver = PolicyPlayer | MCTSPlayer


def is_solver(player: Player) -> TypeGuard[Solver]:
    """Whether a player is one whose replies are bare actions, which an [`ExpertPlayer`] can write out."""
    return isinstance(player, PolicyPlayer | MCTSPlayer)


class _Decided(PolicyPlayer):
    """A policy without actions of negligible probability."""

    def __init__(self, player: PolicyPlayer):
        self.player = player
        self.name = player.name

    def action_probabilities(self, turn: Turn) -> dict[str, float]:
        probabilities = self.player.action_probabilities(turn)
        kept = {action: p if p >= NEGLIGIBLE else 0.0 for action, p in probabilities.items()}
        total = sum(kept.values())
        # Of a hundred actions or more each may have less
        return {action: p / total for action, p in kept.items()} if total else probabilities


class ExpertPlayer:
    r"""Plays as a solver does and writes the reasons before the action.

    Actions with less than 1% of the probability are never played: they are what the solver has not converged on.

    Args:
        player ([`~spiral_trl.players.bots.PolicyPlayer`] or [`~spiral_trl.players.search.MCTSPlayer`]): The solver.
        rationale (`bool`, *optional*, defaults to `False`): Whether replies hold the reasons.
        think (`bool`, *optional*, defaults to `False`): Whether the reasons stand in `<think>...</think>`.
        boxed (`bool`, *optional*, defaults to `False`): Whether the action is written `\boxed{bet}` instead of `[bet]`.
        render (`Callable`, *optional*): Writes the reply to a turn and an action instead, with no reasons.

    Raises:
        `ValueError`: If reasons are asked for that this solver cannot give, or there is nothing to think about.
    """

    speculative = False

    def __init__(
        self,
        player: Solver,
        rationale: bool = False,
        think: bool = False,
        boxed: bool = False,
        render: Callable[[Turn, str], str] | None = None,
    ):
        if think and not rationale:
            raise ValueError("think=True needs rationale=True: there is nothing to think without reasons.")
        if render is not None and (rationale or boxed):
            raise ValueError("render writes the whole reply; rationale, think and boxed do not go with it.")
        self.name = player.name
        self.player: Solver = _Decided(player) if isinstance(player, PolicyPlayer) else player
        self.think = think
        self.boxed = boxed
        self.render = render
        self.analyst = _analyst_of(player, self.player) if rationale else None

    def reply(self, turns: Sequence[Turn]) -> list[Reply]:
        """One reply for each turn."""
        seeds = np.array([turn.seed for turn in turns], dtype=np.int64)
        index = np.array([turn.index for turn in turns], dtype=np.int64)
        replies, which = self.sample(turns, np.arange(len(turns)), seeds, index)
        return [replies[i] for i in which]

    def sample(
        self, turns: Sequence[Turn], which: np.ndarray, seeds: np.ndarray, index: np.ndarray
    ) -> tuple[list[Reply], np.ndarray]:
        """Replies for many games that stand at few distinct turns; see [`~spiral_trl.players.base.Player`]."""
        if isinstance(self.analyst, SearchAnalyst):
            # Each game has a search of its own, which gives the action and the reasons at once
            texts = []
            for row, seed, at in zip(which.tolist(), seeds.tolist(), index.tolist(), strict=True):
                analysis = self.analyst.analyse(replace(turns[row], seed=seed, index=at))
                phrasing = int(uniforms(seed, REPLY, at, 1) * VARIANTS)
                texts.append(Reply(text=self._written(rationale(analysis, phrasing), analysis.action)))
            return texts, np.arange(len(texts))
        replies, chosen = self.player.sample(turns, which, seeds, index)
        variants = 1 if self.analyst is None else VARIANTS
        variant = (uniforms(seeds, REPLY, index, 1) * variants).astype(np.int64)
        used, first, again = np.unique(chosen * variants + variant, return_index=True, return_inverse=True)
        written = []
        for code, at in zip(used.tolist(), first.tolist(), strict=True):
            reply, phrasing = divmod(code, variants)
            action = replies[reply].text[1:-1]
            written.append(Reply(text=self.text(turns[which[at]], action, phrasing)))
        return written, again

    def text(self, turn: Turn, action: str, variant: int = 0) -> str:
        """The whole reply for an action."""
        if self.render is not None:
            return self.render(turn, action)
        reasons = None if self.analyst is None else rationale(self.analyst.analyse(turn, action), variant)
        return self._written(reasons, action)

    def _written(self, reasons: str | None, action: str) -> str:
        last = answer(action, self.boxed)
        if reasons is None:
            return last
        return f"<think>\n{reasons}\n</think>\n\n{last}" if self.think else f"{reasons}\n\n{last}"


def _analyst_of(player: Solver, decided: Solver) -> Analyst:
    """Who gives reasons for a solver's play; `decided` is what is played of it."""
    if isinstance(player, CFRPlayer) and isinstance(decided, PolicyPlayer):
        return EquilibriumAnalyst(decided)
    if isinstance(player, MinimaxPlayer):
        return MinimaxAnalyst(player)
    if isinstance(player, MCTSPlayer):
        return SearchAnalyst(player)
    raise ValueError(f"{player.name} gives no reasons; cfr, minimax and mcts do. Ask for no rationale.")
