"""The half of the trainer that plays: the policy as a player, its opponents, and the games of a generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from ..games.chance import derive_seeds
from ..players.base import Player
from ..players.frozen_model import ModelSettings
from ..players.language_model import Engine, LanguageModelPlayer
from ..players.pool import PoolSpec, is_pool
from ..players.registry import canonical_player_name, make_player
from ..records import EpisodeBatch
from ..rollout import play_matches
from .checkpoint import POOL_FOLDER
from .config import SelfPlayConfig
from .opponents import Lineup, others
from .pool import SnapshotPool


class PlayingTrainer(GRPOTrainer):
    """TRL's trainer with a policy that plays. It overrides nothing of it; [`~spiral_trl.SelfPlayTrainer`] does."""

    args: SelfPlayConfig
    model: PreTrainedModel
    games: list[str]
    max_completion_length: int
    chat_template_kwargs: dict[str, Any]

    def _seat_players(self) -> None:
        """Makes the policy's player, the pool and the other opponents."""
        args = self.args
        pooled = next((name for name in args.opponent_weights if is_pool(name)), None)
        zero_3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
        if pooled is not None and (self.is_fsdp_enabled or zero_3):
            raise ValueError(
                f"opponents: {pooled} keeps snapshots of whole parameters, which FSDP and ZeRO-3 shard; use ZeRO-2 or "
                "DDP."
            )
        self._same_games = False
        engine = None
        if self.use_vllm or self.use_transformers_continuous_batching:
            engine = self._generate_by_engine
        self._generating_model: PreTrainedModel = self.accelerator.unwrap_model(self.model)
        self.player = self._make_player("model", self._yield_generating_model, engine)
        self.pool: SnapshotPool | None = None
        if pooled is not None:
            self.pool = SnapshotPool(
                PoolSpec.parse(pooled),
                Path(args.output_dir) / POOL_FOLDER,
                saves=args.should_save,
                wait=self.accelerator.wait_for_everyone,
                model=self._yield_generating_model,
                make_player=self._make_player,
            )
        self._opponents: dict[str, Player] = {}
        opponents = others(args.opponent_weights)
        self.lineup = Lineup(
            self.games,
            args.game_weights,
            args.opponent_weights,
            args.seed,
            self.player,
            {name: self.opponent(name) for name in opponents},
            {name: canonical_player_name(name) for name in opponents},
            self.pool,
        )

    def _make_player(
        self, name: str, unwrap: Callable[[], AbstractContextManager[PreTrainedModel]], engine: Engine | None = None
    ) -> LanguageModelPlayer:
        """A player that samples as the configuration says, with the model that `unwrap` yields or an engine."""
        return LanguageModelPlayer(
            self._generating_model,
            self._tokenizer,
            name=name,
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            eos_token_ids=self.eos_token_ids,
            generation_kwargs=self.args.generation_kwargs,
            chat_template_kwargs=self.chat_template_kwargs,
            prompt_template=self.args.prompt_template,
            max_rows=self.args.generation_rows,
            unwrap=unwrap,
            engine=engine,
        )

    def opponent(self, name: str) -> Player:
        """A player by name, made once. Models are put beside the policy, and asked and sampled as it is unless the name
        says otherwise."""
        if name in self._opponents:
            return self._opponents[name]
        device = self.accelerator.device
        settings = ModelSettings(
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            chat_template_kwargs=self.chat_template_kwargs,
            prompt_template=self.args.prompt_template,
            max_rows=self.args.generation_rows,
            device=str(device) if device.type == "cuda" else device.type if device.type in ("cpu", "mps") else None,
            trust_remote_code=self.args.trust_remote_code,
        )
        self._opponents[name] = make_player(name, settings)
        return self._opponents[name]

    @contextmanager
    def _yield_generating_model(self) -> Iterator[PreTrainedModel]:
        yield self._generating_model

    @contextmanager
    def generation(self, own_games: bool = False) -> Iterator[None]:
        """Unwraps the model once for all turns of a rollout (and gathers it under ZeRO-3).

        Args:
            own_games (`bool`, *optional*, defaults to `False`): Whether processes play games of their own. Otherwise
                they play the same ones, and what an engine generates is that of the first process on all of them: a
                game that went on differently would leave processes waiting for each other.
        """
        if self.player.engine is not None:
            self._same_games = not own_games
            try:
                yield
            finally:
                self._same_games = False
            return
        with (
            torch.no_grad(),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
        ):
            self._generating_model = model
            yield

    def _generate_by_engine(self, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        """Generation by TRL's engines. They slice by equal counts, so every process asks for equally many."""
        most = max(gather_object([len(prompts)]))
        asked = prompts + [prompts[0]] * (most - len(prompts))
        generated = [self._generate_single_turn(asked, None, {}, 1)[:2]]
        if self._same_games:
            broadcast_object_list(generated)
        completion_ids, logprobs = generated[0]
        return completion_ids[: len(prompts)], None if logprobs is None else logprobs[: len(prompts)]

    def play_generation(self, generation: int) -> tuple[EpisodeBatch, np.ndarray]:
        """This process's games of a generation, and the index of each among all processes' games."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = np.arange(rank, self.args.games_per_generation, world)
        seeds = derive_seeds(self.args.seed, generation, mine)
        synchronize = None
        if self.player.engine is not None and world > 1:

            def synchronize(level: int) -> int:
                return max(gather_object([level]))

        schedule = self.lineup.schedule(generation, self.args.games_per_generation)
        matches, order = self.lineup.matches(schedule, generation, mine, seeds, every=synchronize is not None)
        with self.generation(own_games=True):
            batch = play_matches(
                matches,
                illegal=self.args.illegal_moves,
                max_turns=self.args.max_turns,
                synchronize=synchronize,
                collective=[self.player],
            )
        learner = schedule.learner(self.lineup.seats)[order][:, : batch.outcomes.returns.shape[1]]
        return replace(batch, outcomes=replace(batch.outcomes, learner=learner)), order
