"""Configuration of [`~spiral_trl.SelfPlayTrainer`]: TRL's, with the paper's defaults and the fields self-play adds."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, field, fields
from math import inf
from typing import TYPE_CHECKING, Any, cast

from trl import GRPOConfig

from ..advantages import make_advantage
from ..errors import did_you_mean
from ..players.prompts import find_prompt_template
from ..rollout import IllegalMoves
from .opponents import read_opponents


GUARD_ACTIONS = ("warn", "stop", "rollback")
LOSS_TYPES = ("dr_grpo", "dapo", "cispo")

# Endings of names of `evaluate()`'s metrics
LESS_IS_BETTER = (
    "exploitability",
    "exploitability_given_legal",
    "exploitability_lower_bound",
    "nash_conv",
    "illegal_rate",
)

# TRL options that have no meaning in self-play, or would be ignored: refused where they are set. A test holds every
# option of GRPOConfig to be either here or working.
REFUSED = {
    "num_generations": "turns are not generated in groups; set games_per_generation",
    "num_generations_eval": "turns are not generated in groups; set eval_games",
    "generation_batch_size": "a generation is counted in games; set games_per_generation",
    "num_train_epochs": "self-play has no dataset and so no epochs; set max_steps",
    "shuffle_dataset": "self-play has no dataset",
    "multi_objective_aggregation": "rewards of reward_funcs are added to the advantage, never normalised",
    "cache_implementation": "generation manages its own key-value cache",
    "sapo_temperature_neg": f"loss_type is one of {', '.join(LOSS_TYPES)}",
    "sapo_temperature_pos": f"loss_type is one of {', '.join(LOSS_TYPES)}",
    "vespo_k_pos": f"loss_type is one of {', '.join(LOSS_TYPES)}",
    "vespo_lambda_pos": f"loss_type is one of {', '.join(LOSS_TYPES)}",
    "vespo_k_neg": f"loss_type is one of {', '.join(LOSS_TYPES)}",
    "vespo_lambda_neg": f"loss_type is one of {', '.join(LOSS_TYPES)}",
    "max_tool_calling_iterations": "games are no tools",
    "log_multimodal": "games are text",
    "ds3_gather_for_generation": "generation gathers the weights once; set use_vllm to generate elsewhere",
}


@dataclass
class SelfPlayConfig(GRPOConfig):
    r"""
    Configuration class for the [`SelfPlayTrainer`].

    It inherits every parameter of [`~trl.GRPOConfig`]; what has no meaning in self-play is refused by name. Defaults
    are those of the [SPIRAL paper](https://huggingface.co/papers/2506.24119), table 6: learning rate 1e-6 held
    constant, AdamW betas (0.9, 0.95), no weight decay, two updates for each generation, clipping at 0.2, temperature 1,
    no KL term, Dr. GRPO normalisation.

    The magnet is TRL's own reference term, opt-in: `beta` weighs the reverse KL to a reference model, and
    `sync_ref_model=True` refreshes the reference every `ref_model_sync_steps` steps. It pulls play towards where it
    recently was, which in two-player zero-sum games turns cycling into approach to an equilibrium. It is inspired by
    regularised Nash dynamics and magnetic mirror descent and is neither: the opponent's reward is not transformed, and
    there is no proximal term. It covers every token of the reply, one by one: a token gets no credit for the KL of
    later tokens.

    Using [`~transformers.HfArgumentParser`] we can turn this class into
    [argparse](https://docs.python.org/3/library/argparse#module-argparse) arguments that can be specified on the
    command line.

    Parameters:
        > Parameters that control the games

        games_per_generation (`int`, *optional*, defaults to `128`):
            Games played with one version of the policy, by all processes together. Each gives one training row per
            turn of each role.
        max_turns (`int`, *optional*, defaults to `50`):
            Turns after which a game is truncated, with returns of 0.
        illegal_moves (`str`, *optional*, defaults to `"forfeit"`):
            What an illegal or ambiguous reply does: `"forfeit"` (the game's worst return), `"spiral"` (-1.5 and +0.5,
            as in the SPIRAL release), `"retry(k)"` or `"random_legal"`. See [`~spiral_trl.rollout.IllegalMoves`].
        generation_rows (`int`, *optional*, defaults to `512`):
            Most rows in one forward pass of generation.
        prompt_template (`str`, *optional*, defaults to `"chat"`):
            How turns are written as prompts: `"chat"` (the tokenizer's chat template), `"qwen3_base"`,
            `"r1_distill"` or `"llama_instruct"`. See [`~spiral_trl.players.prompts.PromptTemplate`].
        game_weights (`list[float]`, *optional*):
            Shares of the games, in their order. By default equal.

        > Parameters that control the opponents

        opponents (`dict[str, float]`, *optional*):
            Whom the policy plays, with weights: `self` (all seats; the default, alone), a player by name such as
            `random`, `cfr` or the folder of a model, and `pool(matchmaking=uniform,size=16,every=25)`, the policy's
            own snapshots (see [`~spiral_trl.players.pool.PoolSpec`]). A list of names gives them equal weights. On
            the command line a name, or a mapping or list as JSON. Against others the policy has one seat, and only
            that one is trained.

        > Parameters that control the advantage

        advantage (`str`, *optional*, defaults to `"rae"`):
            `"rae"` (role-conditioned advantage estimation), or for ablation `"none"` (raw returns), `"shared"` (one
            baseline for both roles) or `"leave_one_out"` (mean of the batch's other games).
        baseline_decay (`float`, *optional*, defaults to `0.95`):
            Decay of the moving-average baselines.

        > Parameters that control the evaluation

        eval_games (`int`, *optional*, defaults to `128`):
            Games of each evaluation, in self-play and against each opponent. Against an opponent every deal is played
            twice with seats swapped, so the number must be even.
        eval_opponents (`list[str]`, *optional*, defaults to `["random"]`):
            Players to evaluate against.
        eval_held_out_games (`list[str]`, *optional*, defaults to `[]`):
            Games that are evaluated and not trained on.
        exploitability_samples (`int`, *optional*):
            Replies sampled for each information set to estimate the exploitability. By default it is exact where
            replies are short, and otherwise estimated from 128 replies.
        eval_on_start (`bool`, *optional*, defaults to `False`):
            As in [`~transformers.TrainingArguments`].

        > Parameters that control the guards against collapse

        guard_action (`str`, *optional*, defaults to `"warn"`):
            What is done when a figure leaves its bound: `"warn"`, `"stop"` (training ends) or `"rollback"` (training ends
            and the model is put back to the last checkpoint without an alarm). See
            [`~spiral_trl.training.guards.GuardCallback`].
        guard_window (`int`, *optional*, defaults to `20`):
            Generations that a figure is averaged over.
        guard_reply_length (`float`, *optional*):
            Least mean reply length, as a share of the first window's.
        guard_entropy (`float`, *optional*):
            Least entropy per token in nats, estimated from the sampled tokens.
        guard_seat_gap (`float`, *optional*):
            Largest difference of the policy's mean returns in two roles of a game.
        guard_illegal_rate (`float`, *optional*):
            Largest share of illegal replies.
        guard_anchor (`str`, *optional*):
            One of `eval_opponents` that does not change, such as the folder of the initial model.
        guard_anchor_win_rate (`float`, *optional*):
            Least win rate against it in an evaluation.

        > Parameters that control the output

        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Whether an output folder that holds another run may be written over. Its checkpoints are deleted.

        > Parameters whose default values are overridden

        learning_rate (`float`, *optional*, defaults to `1e-6`):
            Learning rate at the start.
        lr_scheduler_type (`str`, *optional*, defaults to `"constant"`):
            Schedule of the learning rate.
        adam_beta2 (`float`, *optional*, defaults to `0.95`):
            Second beta of AdamW.
        max_steps (`int`, *optional*, defaults to `800`):
            Optimizer steps: the paper's 400 generations with two updates each.
        num_iterations (`int`, *optional*, defaults to `2`):
            Updates with each generation.
        max_completion_length (`int`, *optional*, defaults to `8192`):
            Longest reply in tokens.
        loss_type (`str`, *optional*, defaults to `"dr_grpo"`):
            `"dr_grpo"` divides the sum over tokens by turns x `max_completion_length`, `"dapo"` by completion tokens;
            `"cispo"` is the CISPO loss, normalised like `"dapo"`. Other losses average over rows and are refused.
        scale_rewards (`str`, *optional*, defaults to `"none"`):
            Advantages are not scaled; any other value is refused.
        ref_model_mixup_alpha (`float`, *optional*, defaults to `1.0`):
            Weight of the policy where the reference is refreshed; 1 copies it.
        greater_is_better (`bool`, *optional*):
            Defaults to `False` where `metric_for_best_model` is an exploitability or an illegal rate.
    """

    # Defaults of the paper
    learning_rate: float = field(default=1e-6, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The scheduler type to use."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 for AdamW."})
    max_steps: int = field(
        default=800,
        metadata={
            "help": "Number of optimizer steps. The default is the paper's 400 generations with 2 updates each."
        },
    )
    num_train_epochs: float | None = field(  # type: ignore[assignment]  # None is seen as unset
        default=None, metadata={"help": "Not used; set max_steps."}
    )
    num_iterations: int = field(default=2, metadata={"help": "Number of updates with each generation."})
    num_generations: int | None = field(default=None, metadata={"help": "Not used; set games_per_generation."})
    max_completion_length: int = field(
        default=8192, metadata={"help": "Maximum length of the generated reply in tokens."}
    )
    loss_type: str = field(
        default="dr_grpo",
        metadata={
            "help": "Loss and its normalisation: 'dr_grpo' divides by turns times max_completion_length (the "
            "paper's), 'dapo' by completion tokens, 'cispo' is the CISPO loss, normalised like 'dapo'."
        },
    )
    scale_rewards: str = field(
        default="none", metadata={"help": "Advantages are not scaled; any other value is refused."}
    )
    ref_model_mixup_alpha: float = field(
        default=1.0,
        metadata={"help": "Weight of the current policy when the reference is refreshed; 1 copies it."},
    )

    # Parameters that control the games
    games_per_generation: int = field(
        default=128,
        metadata={"help": "Games played with one version of the policy, by all processes together."},
    )
    max_turns: int = field(default=50, metadata={"help": "Turns after which a game is truncated, with returns of 0."})
    illegal_moves: str = field(
        default="forfeit",
        metadata={
            "help": "What an illegal or ambiguous reply does: 'forfeit', 'spiral', 'retry(k)' or 'random_legal'."
        },
    )
    generation_rows: int = field(default=512, metadata={"help": "Most rows in one forward pass of generation."})
    prompt_template: str = field(
        default="chat",
        metadata={
            "help": "How turns are written as prompts: 'chat' (the tokenizer's chat template), 'qwen3_base', "
            "'r1_distill' or 'llama_instruct'."
        },
    )
    game_weights: list[float] | None = field(
        default=None, metadata={"help": "Shares of the games, in their order. By default equal."}
    )

    # Parameters that control the opponents
    # The command line reads the second of a union's types
    opponents: dict[str, float] | str | list[str] | None = field(
        default=None,
        metadata={
            "help": "Whom the policy plays, with weights: 'self', players by name, 'pool(...)'. A name, or a mapping "
            "or list as JSON. By default self alone."
        },
    )

    # Parameters that control the advantage
    advantage: str = field(
        default="rae", metadata={"help": "Advantage estimator: 'rae', 'none', 'shared' or 'leave_one_out'."}
    )
    baseline_decay: float = field(default=0.95, metadata={"help": "Decay of the moving-average baselines."})

    # Parameters that control the evaluation
    eval_games: int = field(
        default=128, metadata={"help": "Games of each evaluation, in self-play and against each opponent."}
    )
    eval_opponents: list[str] = field(
        default_factory=lambda: ["random"], metadata={"help": "Players to evaluate against."}
    )
    eval_held_out_games: list[str] = field(
        default_factory=list, metadata={"help": "Games that are evaluated and not trained on."}
    )
    exploitability_samples: int | None = field(
        default=None,
        metadata={"help": "Replies sampled for each information set to estimate the exploitability."},
    )

    # Parameters that control the guards against collapse
    guard_action: str = field(default="warn", metadata={"help": "What a guard does: 'warn', 'stop' or 'rollback'."})
    guard_window: int = field(default=20, metadata={"help": "Generations that a guarded figure is averaged over."})
    guard_reply_length: float | None = field(
        default=None, metadata={"help": "Least mean reply length, as a share of the first window's."}
    )
    guard_entropy: float | None = field(default=None, metadata={"help": "Least entropy per token in nats."})
    guard_seat_gap: float | None = field(
        default=None, metadata={"help": "Largest difference of the mean returns in two roles of a game."}
    )
    guard_illegal_rate: float | None = field(default=None, metadata={"help": "Largest share of illegal replies."})
    guard_anchor: str | None = field(default=None, metadata={"help": "One of eval_opponents that does not change."})
    guard_anchor_win_rate: float | None = field(
        default=None, metadata={"help": "Least win rate against guard_anchor in an evaluation."}
    )

    # Parameters that control the output
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether an output folder that holds another run may be written over."}
    )

    if TYPE_CHECKING:
        # As `__post_init__` leaves them: TRL declares what may be given, such as None or JSON
        output_dir: str = cast("Any", None)
        steps_per_generation: int = cast("Any", None)
        pad_to_multiple_of: int | None = None
        gradient_checkpointing_kwargs: dict[str, Any] | None = None
        model_init_kwargs: dict[str, Any] | None = None
        generation_kwargs: dict[str, Any] | None = None
        chat_template_kwargs: dict[str, Any] | None = None

    @property
    def opponent_weights(self) -> dict[str, float]:
        """`opponents` as `__post_init__` leaves it."""
        return cast("dict[str, float]", self.opponents)

    def __post_init__(self) -> None:
        self._refuse_meaningless()
        for name in (
            "games_per_generation",
            "max_turns",
            "generation_rows",
            "eval_games",
            "guard_window",
            "max_steps",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1.")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but must be above 0: replies are sampled.")
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, but must be at least 0.")
        if self.eval_games % 2:
            raise ValueError(f"eval_games is {self.eval_games}, but must be even: deals are played from both seats.")
        if self.exploitability_samples is not None and self.exploitability_samples < 2:
            raise ValueError(f"exploitability_samples is {self.exploitability_samples}, but must be at least 2.")
        if not self.max_completion_length or self.max_completion_length < 1:
            raise ValueError(f"max_completion_length is {self.max_completion_length}, but must be at least 1.")
        if self.sync_ref_model and not self.beta:
            raise ValueError(
                "sync_ref_model=True refreshes the reference model, but beta is 0 and there is none. Set beta above 0, "
                "or sync_ref_model=False."
            )
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            if self.metric_for_best_model.endswith(LESS_IS_BETTER):
                self.greater_is_better = False  # transformers would take the most exploitable for the best
        self._check_guards()
        self.opponents = read_opponents(self.opponents)
        if self.game_weights is not None:
            for weight in self.game_weights:
                if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < inf:
                    raise ValueError(f"game_weights holds {weight!r}, but every share must be a number above 0.")
        IllegalMoves.parse(self.illegal_moves)
        find_prompt_template(self.prompt_template)
        make_advantage(self.advantage, self.baseline_decay)
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(
                f"loss_type is {self.loss_type!r}, but self-play takes {', '.join(LOSS_TYPES)}: the other losses "
                "average over rows, and the number of turns is not fixed."
            )
        if self.scale_rewards not in ("none", False):
            raise ValueError(
                f"scale_rewards is {self.scale_rewards!r}, but advantages are not scaled in self-play; leave it at "
                "'none'."
            )

        # TRL wants the batch to hold whole groups; one group that is the whole batch satisfies it for any size.
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        group = self.per_device_train_batch_size * steps
        group = group if group > 1 else int(os.environ.get("WORLD_SIZE", 1))
        if group < 2:
            raise ValueError(
                "per_device_train_batch_size x gradient_accumulation_steps x processes is 1, but TRL needs at least "
                "2. Raise per_device_train_batch_size."
            )
        self.num_generations = group
        self.num_generations_eval = 1
        self.num_train_epochs = 3.0  # never read: max_steps is set
        super().__post_init__()

        if self.games_per_generation % self.world_size:
            raise ValueError(
                f"games_per_generation ({self.games_per_generation}) must be divisible by the number of processes "
                f"({self.world_size})."
            )
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be divisible by "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}): a generation is spent in whole "
                "optimizer steps."
            )

    def _check_guards(self) -> None:
        if self.guard_action not in GUARD_ACTIONS:
            raise ValueError(
                f"guard_action is {self.guard_action!r}, but must be one of {', '.join(GUARD_ACTIONS)}"
                f"{did_you_mean(self.guard_action, GUARD_ACTIONS)}"
            )
        for name, most in (
            ("guard_reply_length", 1.0),
            ("guard_entropy", inf),
            ("guard_seat_gap", inf),
            ("guard_illegal_rate", 1.0),
            ("guard_anchor_win_rate", 1.0),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value <= most and value < inf):
                span = "above 0" if most == inf else f"above 0 and at most {most:g}"
                raise ValueError(f"{name} is {value!r}, but must be a number {span}.")
        if (self.guard_anchor is None) is not (self.guard_anchor_win_rate is None):
            raise ValueError("guard_anchor and guard_anchor_win_rate go together: set both, or neither.")
        if self.guard_anchor is not None:
            if self.guard_anchor not in self.eval_opponents:
                raise ValueError(
                    f"guard_anchor is {self.guard_anchor!r}, but must be one of eval_opponents "
                    f"({', '.join(self.eval_opponents) or 'none'}){did_you_mean(self.guard_anchor, self.eval_opponents)}"
                )
            if self.eval_strategy == "no":
                raise ValueError("guard_anchor is looked at in evaluations; set eval_strategy and eval_steps.")
        if self.guard_action == "rollback" and (self.save_strategy == "no" or self.load_best_model_at_end):
            raise ValueError(
                "guard_action='rollback' needs checkpoints, and load_best_model_at_end=False, which would put back "
                "another one. Set save_strategy and save_steps."
            )

    def _refuse_meaningless(self) -> None:
        for option in fields(self):
            if option.name not in REFUSED:
                continue
            default = option.default if option.default is not MISSING else None
            value = getattr(self, option.name)
            if value != default:
                raise ValueError(
                    f"{option.name}={value!r} cannot be used in self-play: {REFUSED[option.name]}. Remove it."
                )
