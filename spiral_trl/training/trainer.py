"""The self-play trainer: TRL's GRPOTrainer with games in place of prompts and rewards."""

from __future__ import annotations

import json
import math
import os
import textwrap
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback

from ..advantages import AdvantageEstimator, make_advantage
from ..errors import PlayError
from ..players.language_model import check_chat_template
from ..prefix_sharing import distinct_rows
from ..records import EpisodeBatch
from .batch import gather_outcomes, learner_turns, training_rows
from .callbacks import LogWhereSavedCallback
from .checkpoint import abandon_after, discard_run, last_whole_checkpoint, unmark
from .checks import (
    check_games,
    check_held_out,
    check_model_folder,
    check_opponents,
    check_output_dir,
    check_reference,
)
from .config import SelfPlayConfig
from .evaluation import evaluate_player
from .guards import GuardCallback
from .metrics import COMPLETION_ROWS, record_generation
from .playing import PlayingTrainer
from .saving import load_state, save_state
from .scoring import score_rows, shaping_rewards


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase
    from transformers.trainer_utils import TrainOutput


# Of TRL's completions table; ours are in its `extra`
_COMPLETION_COLUMNS = ("prompt", "completion", "advantages")


def game_return(**kwargs: Any) -> list[float | None]:
    """Stands for the game where TRL wants a reward source; returns come from the games and this is never called."""
    raise RuntimeError("game_return is a placeholder: rewards come from the games")


class _Ticks(torch.utils.data.Dataset):
    """One empty item per micro-step: what the games produce does not come from a dataset."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return {}


class SelfPlayTrainer(PlayingTrainer):
    """
    Trainer for self-play in multi-turn zero-sum games, from the paper [SPIRAL: Self-Play on Zero-Sum Games
    Incentivizes Reasoning via Multi-Agent Multi-Turn Reinforcement
    Learning](https://huggingface.co/papers/2506.24119).

    One policy, conditioned on game and role by its prompt, plays every seat, or one seat against the opponents that
    `args.opponents` names. Each turn of each of its seats is one training row; its advantage is the seat's return less
    a baseline of its role (role-conditioned advantage estimation).

    Example:

    ```python
    from spiral_trl import SelfPlayConfig, SelfPlayTrainer

    trainer = SelfPlayTrainer(
        model="Qwen/Qwen3-4B-Base",
        games=["kuhn_poker"],
        args=SelfPlayConfig(output_dir="spiral-qwen3-4b"),
    )
    trainer.train()
    ```

    What it overrides of [`~trl.GRPOTrainer`], and why:

    - `__init__`: no dataset and no reward function; Dr. GRPO is computed as a sum over tokens with the normaliser
      turns x `max_completion_length`, so that padding rows change nothing; the reference model starts from the weights
      of a model that is passed as an instance.
    - `get_train_dataloader`: one empty item per micro-step.
    - `_generate_and_score_completions`: plays the games and builds the batch.
    - `_get_per_token_logps_and_entropies`: computes equal rows once.
    - `evaluate`: plays games; it never changes training state.
    - `train`, `_save_checkpoint`, `_load_optimizer_and_scheduler`: baselines, counters, a refreshed reference, the pool
      of opponents, what guards have seen and an unspent generation are saved with the checkpoint, which is marked as
      whole last. A model that collapsed is put back where `guard_action` says so.
    - `training_step`: times.
    - `create_model_card`: the card of the run's `metrics.json` where there is one.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Model to train, as in [`~trl.GRPOTrainer`].
        games (`str` or `list[str]`):
            Games to play, such as `"kuhn_poker(rounds=5)"`. Games of a generation are dealt to them in turn, or by
            `args.game_weights`.
        args ([`SelfPlayConfig`], *optional*):
            Configuration.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer with a chat template. Loaded from the model's folder or id by default.
        reward_funcs (`Callable` or `list`, *optional*):
            Shaping rewards of single turns, in TRL's form. They are called with `prompts`, `completions`,
            `completion_ids`, and of each turn `game`, `role`, `action`, `error`, `seat_return`. Their weighted sum is
            added to the turn's advantage, and each is logged. None by default: the paper's reward is the game's.
        advantage ([`~spiral_trl.advantages.AdvantageEstimator`], *optional*):
            What turns outcomes into advantages. By default that of `args.advantage`.
        callbacks, optimizers, quantization_config, peft_config:
            As in [`~trl.GRPOTrainer`].
        train_dataset, eval_dataset:
            Refused: self-play takes no dataset.
    """

    pad_to_multiple_of: int | None
    _logs: dict[str, Any]
    _buffered_inputs: list[dict[str, Any]] | None  # type: ignore[assignment]  # TRL's is inferred None

    _tag_names = ["trl", "spiral-trl", "self-play"]
    _name = "SPIRAL"
    _paper = {
        "title": "SPIRAL: Self-Play on Zero-Sum Games Incentivizes Reasoning via Multi-Agent Multi-Turn Reinforcement "
        "Learning",
        "id": "2506.24119",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @misc{spiral2025,
                title         = {{SPIRAL: Self-Play on Zero-Sum Games Incentivizes Reasoning via Multi-Agent Multi-Turn Reinforcement Learning}},
                year          = 2025,
                eprint        = {2506.24119},
                archivePrefix = {arXiv},
            }"""),
    }

    def __init__(
        self,
        model: str | PreTrainedModel,
        games: str | Sequence[str],
        args: SelfPlayConfig | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_funcs: Callable | list[Callable] | None = None,
        advantage: AdvantageEstimator | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
    ):
        # Everything that can be wrong without the model is checked before it is loaded
        if train_dataset is not None or eval_dataset is not None:
            raise ValueError("Self-play takes no dataset: the games make the data. Set games and max_steps.")
        self.games = check_games(games)
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = SelfPlayConfig(f"{name.split('/')[-1]}-SPIRAL")
        elif not isinstance(args, SelfPlayConfig):
            raise TypeError(f"args must be a SelfPlayConfig, got {type(args).__name__}.")
        check_reference(args, peft_config is not None)
        check_opponents(args, self.games)
        self.held_out = check_held_out(args, self.games)
        self.advantage = advantage if advantage is not None else make_advantage(args.advantage, args.baseline_decay)
        if isinstance(model, str):
            check_model_folder(model)
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(
                    model,
                    revision=(args.model_init_kwargs or {}).get("revision"),
                    padding_side="left",
                    truncation_side="left",
                    trust_remote_code=args.trust_remote_code,
                )
        elif args.beta != 0.0 and not model.config._name_or_path and peft_config is None:
            raise ValueError(
                "beta > 0 needs a reference model, which TRL loads by name: save the model and pass its folder."
            )
        if processing_class is not None:
            check_chat_template(processing_class, args.prompt_template)
        shaping = reward_funcs if isinstance(reward_funcs, list) else [] if reward_funcs is None else [reward_funcs]

        placeholder = Dataset.from_dict({"prompt": ["self-play"]})
        super().__init__(
            model=model,
            reward_funcs=list(shaping) or [game_return],
            args=args,
            train_dataset=placeholder,
            eval_dataset=placeholder,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        if self.is_fsdp_enabled and not self.use_vllm:
            raise ValueError("FSDP shards the model that generates; set use_vllm=True, or use DDP or DeepSpeed ZeRO.")
        if self.args.sync_ref_model and args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
            raise ValueError("sync_ref_model cannot be saved and restored under ZeRO-3; use ZeRO-2 or DDP.")
        self._shaping = shaping
        self._normalizer = args.loss_type
        if args.loss_type == "dr_grpo":
            # The same sum over tokens, divided by what `_generate_and_score_completions` says
            self.loss_type = "dapo"
        if self.ref_model is not None and not isinstance(model, str):
            reference = self.accelerator.unwrap_model(self.ref_model)
            reference.load_state_dict(self.accelerator.unwrap_model(self.model).state_dict())
        self.guards = GuardCallback(args, self.games)
        self.add_callback(self.guards)
        self.add_callback(LogWhereSavedCallback())

        # TRL sizes its completions table by prompts, which self-play has none of
        rows = COMPLETION_ROWS * self.accelerator.num_processes
        self._logs |= {name: deque(maxlen=rows) for name in _COMPLETION_COLUMNS}
        self._logs["extra"] = defaultdict(lambda: deque(maxlen=rows))
        self.played = {"games": 0, "turns": 0, "tokens": 0}
        self.seconds = {"generation": 0.0, "training": 0.0, "evaluation": 0.0}
        self.last_batch: EpisodeBatch | None = None
        self._seat_players()

    # ------------------------------------------------------------------------------------------------------ playing

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        started = time.perf_counter()
        args, device = self.args, self.accelerator.device
        self.player.policy_version = self.state.global_step
        generation = self._step // (args.steps_per_generation * self.num_iterations)
        if self.pool is not None:
            self.pool.snapshot(generation, self.state.global_step)
        batch, order = self.play_generation(generation)
        self.last_batch = batch
        for log in (*(self._logs[name] for name in _COMPLETION_COLUMNS), *self._logs["extra"].values()):
            log.clear()
        turns = learner_turns(batch)
        outcomes, position = gather_outcomes(batch.outcomes, order, self.games)
        advantages = self.advantage(outcomes)[position][turns.episode, turns.player]  # (T,)

        # Equal numbers of rows on every process, and whole micro-batches: TRL's split drops a remainder
        steps = args.steps_per_generation
        local = torch.tensor([len(turns), int(turns.length[turns.sample].sum())], device=device)
        counts = self.accelerator.gather(local[None])  # (processes, 2)
        num_rows = math.ceil(max(1, int(counts[:, 0].max())) / steps) * steps
        num_turns, num_tokens = counts.sum(0).tolist()

        if self._shaping:
            advantages = advantages + shaping_rewards(self, batch, turns, num_rows)
        rows = training_rows(
            batch,
            turns,
            advantages,
            num_rows,
            pad_token_id=self._tokenizer.pad_token_id,
            pad_to_multiple_of=self.pad_to_multiple_of,
            mask_truncated=self.mask_truncated_completions,
            device=device,
        )
        trained_tokens = self.accelerator.gather(rows["completion_mask"].sum()).sum()
        per_turn = self._normalizer == "dr_grpo"
        # At least 1: against opponents there may be a generation in which the policy was never asked
        rows["num_items_in_batch"] = (
            torch.tensor(float(max(1, num_turns) * self.max_completion_length), device=device)
            if per_turn
            else trained_tokens.clamp(min=1)
        )
        score_rows(self, rows)
        seconds = time.perf_counter() - started
        self.seconds["generation"] += seconds
        against = self.lineup.record(self.lineup.schedule(generation, args.games_per_generation), generation, outcomes)
        record_generation(self, batch, turns, outcomes, advantages, num_turns, num_tokens, seconds, against)
        return rows

    # ----------------------------------------------------------------------------------------------------- training

    def get_train_dataloader(self) -> DataLoader:
        ticks = _Ticks(self.args.max_steps * self.args.gradient_accumulation_steps)
        return DataLoader(ticks, batch_size=1, collate_fn=lambda items: items)

    def training_step(
        self, model: torch.nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        started, generating = time.perf_counter(), self.seconds["generation"]
        loss = super().training_step(model, inputs, num_items_in_batch)
        generated = self.seconds["generation"] - generating
        self.seconds["training"] += time.perf_counter() - started - generated
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """As TRL's; equal rows are computed once and the results gathered back to every row, with their gradients."""
        # The balance of a mixture's experts is measured over all rows. Under ZeRO-3 every process must make equally
        # many forward passes, and the number of distinct rows differs between them.
        plugin = self.args.deepspeed_plugin
        all_rows = kwargs.get("compute_aux_loss") or (plugin is not None and plugin.zero_stage == 3)
        distinct = None if all_rows else distinct_rows(input_ids, attention_mask)
        if distinct is None:
            return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, *args, **kwargs)
        first, inverse = distinct
        logps, entropies, *rest = super()._get_per_token_logps_and_entropies(
            model, input_ids[first], attention_mask[first], *args, **kwargs
        )
        return logps[inverse], None if entropies is None else entropies[inverse], *rest

    def train(  # type: ignore[override]  # all but the first by keyword
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """As [`~transformers.Trainer.train`]. `resume_from_checkpoint=True` takes the newest checkpoint that was
        written to its end.

        Raises:
            `ValueError`: If the output folder holds another run, or there is nothing whole to resume from.
            [`~spiral_trl.errors.PlayError`]: If a game's code raises or an opponent cannot answer.
        """
        resume = check_output_dir(self.args, resume_from_checkpoint, self.games)
        if self.args.should_save:
            if resume is None:
                discard_run(self.args.output_dir)
            else:
                abandon_after(resume)
        self.guards.reset()
        if self.pool is not None:
            self.pool.reset()
        self.accelerator.wait_for_everyone()
        on_start = self.args.eval_on_start
        self.args.eval_on_start = on_start and resume is None  # its figures are in the log of the run it continues
        try:
            result = super().train(resume_from_checkpoint=resume, **kwargs)
        except PlayError as error:
            last = last_whole_checkpoint(self.args.output_dir)
            if last is not None:
                error.add_note(f"Go on from the last checkpoint with resume_from_checkpoint={last}.")
            raise
        finally:
            self.args.eval_on_start = on_start
        loaded = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if self.guards.roll_back_to is not None:
            loaded = str(self.guards.roll_back_to)
            best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, str(self.guards.roll_back_to)
            self._load_best_model()
            self.state.best_model_checkpoint = best
        # What is played from here on, such as replays, is by these weights and not those of the last generation
        self.player.policy_version = int(loaded.rpartition("-")[2]) if loaded else self.state.global_step
        return result

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save:
            unmark(folder)
        # Rotation waits until the checkpoint is whole
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        save_state(self, folder, limit)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_state(self, checkpoint)

    # --------------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Plays games with the current policy and measures them; training state stays as it is.

        Metrics: `eval_exploitability` (mean over games that have one), `eval_illegal_rate`, and by game and opponent
        returns and win rates, of the games of training and of `eval_held_out_games`. They are computed alike on every process, and those of the first are used.

        Returns:
            `dict[str, float]`
        """
        if eval_dataset is not None:
            raise ValueError("Self-play takes no dataset: evaluate() plays games.")
        started = time.perf_counter()
        was_training, version = self.model.training, self.player.policy_version
        self.model.eval()
        self.player.policy_version = self.state.global_step
        with self.generation():
            metrics = evaluate_player(
                self.player,
                self.games,
                held_out=self.held_out,
                games=self.args.eval_games,
                opponents=self.args.eval_opponents,
                make_opponent=self.opponent,
                samples=self.args.exploitability_samples,
                illegal=self.args.illegal_moves,
                max_turns=self.args.max_turns,
                seed=self.args.seed,
            )
        holder = [{f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}]
        broadcast_object_list(holder)
        metrics = holder[0]
        seconds = time.perf_counter() - started
        metrics[f"{metric_key_prefix}_runtime"] = seconds
        self.seconds["evaluation"] += seconds
        # The completions table is of training, and printing from it draws from the global random state
        log_completions, self.log_completions = self.log_completions, False
        self.log(dict(metrics))
        self.log_completions = log_completions
        self.player.policy_version = version
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_model_card(  # type: ignore[override]  # TRL's differs from Transformers'
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        folder = Path(self.args.output_dir)
        if (folder / "metrics.json").is_file():
            if self.is_world_process_zero():
                from ..hub.card import write_model_card

                write_model_card(json.loads((folder / "metrics.json").read_text()), folder / "README.md")
            return
        super().create_model_card(model_name, dataset_name, tags)
