"""What a whole report is asked for: the fields of `recipes/sae_report.py`, and their checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError, did_you_mean, usage_errors
from ..games.registry import canonical_name
from ..players.frozen_model import check_model
from .activations import check_layers_of
from .dictionaries import check_dictionaries
from .extra import require_extra
from .sources import TextSource, check_dataset, load_config
from .trainers import check_options


# What recipes take for the name of a model, and build and train instead
EMBEDDED = "embedded"


@dataclass
class SAEReportArguments:
    r"""
    What a report on the features of a model is made from.

    Parameters:
        model_name_or_path (`str`):
            The model that is read: a folder, an id on the Hub, or `embedded`, which is built, warm-started and trained by
            self-play first.
        after (`str`, *optional*):
            The same model after training, to be compared with it.
        output_dir (`str`, *optional*, defaults to `"outputs/sae"`):
            Where everything goes. A run that was stopped goes on with what is there.
        self_play (`str`, *optional*, defaults to `"kuhn_tiny.yaml"`), self_play_overrides (`dict`, *optional*):
            For `embedded`: the recipe that trains it, beside this one's, and fields that differ.
        games (`list[str]`, *optional*):
            Games that the model plays against itself to be read, and so does the one after training.
        num_games (`int`, *optional*, defaults to `2000`):
            How many games altogether.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest reply in them.
        episodes (`str`, *optional*), episodes_after (`str`, *optional*):
            Datasets of games that are read instead.
        dataset_name (`str`, *optional*), dataset_config (`str`, *optional*), dataset_split (`str`, *optional*, defaults to `"train"`), dataset_text_field (`str`, *optional*, defaults to `"text"`):
            Texts that are read instead of games.
        max_length (`int`, *optional*, defaults to `256`):
            Tokens of a text's document at most.
        add_bos (`bool`, *optional*):
            Whether a text's document begins with the beginning-of-sequence token; by default as the tokenizer does it.
        drop_first (`bool`, *optional*, defaults to `False`):
            Whether position 0 of texts is left out, which outweighs all others in many models.
        num_tokens (`int`, *optional*):
            Tokens of texts to read; by default all.
        dictionaries (`str`, *optional*):
            Sparse autoencoders: a folder, or `release:NAME` of SAELens's registry. By default they are trained here.
        layers (`list[int]`, *optional*):
            Layers; by default all there are.
        num_features (`int`, *optional*), active_features (`int`, *optional*), architecture (`str`, *optional*, defaults to `"topk"`), train_tokens (`int`, *optional*, defaults to `2000000`), learning_rate (`float`, *optional*):
            Training of dictionaries; see [`~spiral_trl.sae.train.train_dictionaries`].
        top_k (`int`, *optional*, defaults to `16`):
            Neighbours kept of each feature, both ways and by each measure.
        pass_threshold (`float`, *optional*, defaults to `0.95`), gate_threshold (`float`, *optional*, defaults to `0.95`):
            Similarity from which a feature passes through, and necessity or sufficiency of a gate's inputs.
        community_measure (`str`, *optional*, defaults to `"pearson"`), community_threshold (`float`, *optional*, defaults to `0.5`):
            Edges that communities are found on.
        report_features (`int`, *optional*, defaults to `2000`):
            Features that the report shows at most, those aside that its results name.
        processes (`int`, *optional*, defaults to `1`):
            Processes that relate layers.
        seed (`int`, *optional*, defaults to `0`):
            Seed of games, training and resampling.
    """

    model_name_or_path: str = field(metadata={"help": "The model: a folder, an id on the Hub, or `embedded`."})
    after: str | None = field(default=None, metadata={"help": "The model after training."})
    output_dir: str = field(default="outputs/sae", metadata={"help": "Where everything goes."})
    self_play: str = field(default="kuhn_tiny.yaml", metadata={"help": "Recipe that trains the embedded model."})
    self_play_overrides: dict | None = field(default=None, metadata={"help": "Its fields that differ."})
    games: list[str] | None = field(default=None, metadata={"help": "Games to play and read."})
    num_games: int = field(default=2000, metadata={"help": "How many games altogether."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest reply in them."})
    episodes: str | None = field(default=None, metadata={"help": "A dataset of games to read instead."})
    episodes_after: str | None = field(default=None, metadata={"help": "Games of the model after training."})
    dataset_name: str | None = field(default=None, metadata={"help": "Texts to read instead of games."})
    dataset_config: str | None = field(default=None, metadata={"help": "Their configuration."})
    dataset_split: str = field(default="train", metadata={"help": "Their split."})
    dataset_text_field: str = field(default="text", metadata={"help": "Their column of texts."})
    max_length: int = field(default=256, metadata={"help": "Tokens of a text's document at most."})
    add_bos: bool | None = field(default=None, metadata={"help": "Whether documents of texts begin with BOS."})
    drop_first: bool = field(default=False, metadata={"help": "Whether position 0 of texts is left out."})
    num_tokens: int | None = field(default=None, metadata={"help": "Tokens of texts to read."})
    dictionaries: str | None = field(default=None, metadata={"help": "Sparse autoencoders: a folder or a release."})
    layers: list[int] | None = field(default=None, metadata={"help": "Layers; by default all."})
    num_features: int | None = field(default=None, metadata={"help": "Features of dictionaries trained here."})
    active_features: int | None = field(default=None, metadata={"help": "Active features of a token in them."})
    architecture: str = field(default="topk", metadata={"help": "Their architecture."})
    train_tokens: int = field(default=2_000_000, metadata={"help": "Tokens they are trained on."})
    learning_rate: float | None = field(default=None, metadata={"help": "Their learning rate."})
    top_k: int = field(default=16, metadata={"help": "Neighbours kept of each feature."})
    pass_threshold: float = field(default=0.95, metadata={"help": "Similarity from which a feature passes through."})
    gate_threshold: float = field(default=0.95, metadata={"help": "Necessity or sufficiency of a gate's inputs."})
    community_measure: str = field(default="pearson", metadata={"help": "Measure that communities are found by."})
    community_threshold: float = field(default=0.5, metadata={"help": "Its least value of an edge."})
    report_features: int = field(default=2000, metadata={"help": "Features that the report shows at most."})
    processes: int = field(default=1, metadata={"help": "Processes that relate layers."})
    seed: int = field(default=0, metadata={"help": "Seed."})

    def check(self) -> None:
        """Refuses what could not be done, before a model is loaded.

        Raises:
            [`~spiral_trl.errors.UsageError`]: With what is wrong.
        """
        from .relations import MEASURES

        require_extra()
        embedded = self.model_name_or_path == EMBEDDED
        with usage_errors():
            for name in (None if embedded else self.model_name_or_path, self.after):
                if name is not None:
                    check_model(name)
            for game in self.games or ():
                canonical_name(game)
        if embedded and self.after is not None:
            raise UsageError("after is made by self-play where model_name_or_path is embedded: leave it out")
        given = [name for name in ("games", "episodes", "dataset_name") if getattr(self, name)]
        if len(given) != 1:
            raise UsageError(
                f"one of games, episodes and dataset_name says what is read; given: {', '.join(given) or 'none'}"
            )
        if self.episodes_after is not None and (self.episodes is None or self.after is None):
            raise UsageError("episodes_after needs episodes, and the model in after that played them")
        for name, low in (
            ("num_games", 20),
            ("max_new_tokens", 1),
            ("max_length", 2),
            ("num_tokens", 1),
            ("train_tokens", 1),
            ("top_k", 1),
            ("report_features", 1),
            ("processes", 1),
            ("num_features", 1),
            ("active_features", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} has to be at least {low}, not {value}")
        features, active = self.num_features, self.active_features
        if features is not None and active is not None and active > features:
            raise UsageError(f"active_features={active}, but there are {features} features")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UsageError(f"learning_rate has to be above 0, not {self.learning_rate}")
        for name in ("pass_threshold", "gate_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name} has to be above 0 and at most 1, not {getattr(self, name)}")
        if self.community_measure not in MEASURES:
            raise UsageError(
                f"community_measure={self.community_measure!r}; allowed: {', '.join(MEASURES)}"
                f"{did_you_mean(self.community_measure, MEASURES)}"
            )
        if Path(self.output_dir).is_file():
            raise UsageError(f"output_dir {self.output_dir} is a file")
        self._check_inputs(embedded)

    def _check_inputs(self, embedded: bool) -> None:
        """What is read, and the autoencoders, as far as that takes no model."""
        for name in (self.episodes, self.episodes_after):
            if name is not None:
                check_dataset(name)
        if self.dataset_name is not None:
            self.texts.check()
        check_options(self.architecture, {})
        config = None if embedded or not (self.layers or self.dictionaries) else load_config(self.model_name_or_path)
        if self.dictionaries is not None:
            check_dictionaries(self.dictionaries, config, self.layers, any_model=True)
        elif config is not None:
            check_layers_of(config, self.layers or ())

    @property
    def texts(self) -> TextSource:
        """The texts that are read, where `dataset_name` names some."""
        assert self.dataset_name is not None
        return TextSource(
            self.dataset_name,
            self.dataset_config,
            self.dataset_split,
            self.dataset_text_field,
            self.max_length,
            self.add_bos,
            self.drop_first,
        )

    def settings(self) -> dict[str, Any]:
        """What a report says of how it was made: every field but names of folders."""
        local = ("model_name_or_path", "after", "output_dir", "episodes", "episodes_after", "dictionaries")
        return {name: value for name, value in asdict(self).items() if name not in local and value is not None}
