"""What recipes and commands share: reading their arguments strictly, and ending on bad input in one line.

```python
from spiral_trl import SelfPlayConfig
from spiral_trl.cli import RecipeParser, run_recipe


def main(argv):
    script_args, training_args = RecipeParser((ScriptArguments, SelfPlayConfig)).parse_args_and_config(argv)
    ...


if __name__ == "__main__":
    run_recipe(main)
```
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

from .errors import UsageError, did_you_mean, run_main, usage_errors


_SHOWN_CHARS = 80


def run_recipe(main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> NoReturn:
    """[`~errors.run_main`] for recipes, without a warning that no user can act on.

    Checks of a recipe's own that raise `ValueError` (a game's name, say) go into [`~errors.usage_errors`], before a
    model is loaded.
    """
    # TRL 1.16 sets this field by the name that transformers renamed
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)
    run_main(lambda argv: _and_leave_the_group(main, argv), argv)


def _and_leave_the_group(main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None) -> None:
    """`main(argv)`, after which the processes part in order: one that exits inside a gloo group may abort (SIGABRT) on
    its way out, and torchrun then reports a run that ended well as failed.

    Not after an error: to leave a group whose other members wait inside a collective would hang.
    """
    main(argv)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def self_play_parser() -> RecipeParser:
    """The parser of recipes that train by self-play: every field of SelfPlayConfig, TRL's ModelConfig and
    RunArguments."""
    from trl import ModelConfig

    from .training.config import SelfPlayConfig
    from .training.run import RunArguments

    return RecipeParser((RunArguments, SelfPlayConfig, ModelConfig))


def self_play_recipe(default_config: Path) -> Callable[[Sequence[str] | None], None]:
    """The `main(argv)` of a recipe that trains by self-play, measures, and prints a table.

    Args:
        default_config (`Path`): The YAML that is read where `--config` names none.
    """

    def main(argv: Sequence[str] | None = None) -> None:
        from .training.run import run_self_play
        from .training.summary import format_summary

        argv, config = with_default_config(argv, default_config)
        run_args, training_args, model_args = self_play_parser().parse_args_and_config(argv)
        metrics = run_self_play(run_args, training_args, model_args, recipe=Path(config).name)
        if training_args.process_index == 0:
            print(format_summary(metrics))
            print(f"\nreport: {training_args.output_dir}/report.html    card: {training_args.output_dir}/README.md")

    return main


def with_default_config(argv: Sequence[str] | None, default_config: Path) -> tuple[list[str], str]:
    """The arguments (by default those of the command line) with `--config` in two words, `default_config` where none is given, and the file that it names."""
    given_words = sys.argv[1:] if argv is None else argv
    words = [
        part for given in given_words for part in (given.split("=", 1) if given.startswith("--config=") else [given])
    ]
    if "--config" not in words and not {"-h", "--help"} & set(words):
        words = ["--config", str(default_config), *words]
    at = words.index("--config") + 1 if "--config" in words else len(words)
    return words, words[at] if at < len(words) else ""


class RecipeParser(TrlParser):
    """[`~trl.TrlParser`] that takes nothing on trust: every mistake in a YAML or a flag ends in a `UsageError`.

    Overrides of TRL's parser:

    - `parse_args_and_config`: checks the YAML file before its values become defaults. TRL checks neither their types
      nor their choices, so that `games: five` or `save_strategy: no` (a boolean in YAML) would surface in the middle
      of a run. Unknown keys are always errors. Numbers such as `1e-6`, which YAML reads as text, are numbers here.
    - `parse_known_args`: an unknown flag is an error that names the nearest one. Flags cannot be abbreviated.
    - `error`: raises instead of printing the usage of several hundred flags.

    Args:
        dataclass_types (dataclass or iterable of them): As for [`~trl.TrlParser`], [`~trl.GRPOConfig`] among them.
        **kwargs: Passed to [`~argparse.ArgumentParser`].
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any):
        kwargs.setdefault("allow_abbrev", False)
        # TRL rewrites the fields' types for argparse: what the dataclass says is read from its annotations.
        types: list[Any] = [dataclass_types] if is_dataclass(dataclass_types) else list(dataclass_types or ())
        self._hints: dict[str, Any] = {}
        self._choices: dict[str, Sequence[Any]] = {}
        for kind in types:
            hints = get_type_hints(kind)
            for field in fields(kind):
                if field.init:
                    self._hints[field.name] = hints[field.name]
                    if "choices" in field.metadata:
                        self._choices[field.name] = field.metadata["choices"]
        super().__init__(types, **kwargs)

    def parse_args_and_config(self, args: Iterable[str] | None = None) -> tuple[Any, ...]:  # type: ignore[override]
        """One instance of each dataclass, from the file given by `--config` and the flags, which go first.

        The file's `env` mapping is set in the environment, as TRL does.

        Args:
            args (`Iterable[str]`, *optional*, defaults to `sys.argv[1:]`): Command line.

        Raises:
            [`~errors.UsageError`]: If the file or a flag is unknown, malformed or of the wrong type, or if a
            dataclass refuses the values.
        """
        remaining, path = _take_config(sys.argv[1:] if args is None else args)
        if path is not None:
            config = _read_yaml(path)
            env = config.pop("env", None) or {}
            if not isinstance(env, dict):
                raise UsageError(f"{path}: env: got {_show(env)}, expected a mapping of names to values")
            os.environ.update({str(name): str(value) for name, value in env.items()})
            self.set_defaults_with_config(**self.check(config, path))
        with usage_errors():
            return tuple(self.parse_args_into_dataclasses(args=remaining, look_for_args_file=False))

    def check(self, config: dict[Any, Any], where: str) -> dict[str, Any]:
        """The values of a YAML mapping as their fields want them.

        Args:
            config (`dict`): Keys and values.
            where (`str`): The file, for messages.

        Raises:
            [`~errors.UsageError`]: At the first key that no dataclass has, or value that its field does not allow.
        """
        checked = {}
        for key, value in config.items():
            if key not in self._hints:
                hint = did_you_mean(str(key), self._hints) or "; --help lists the keys"
                raise UsageError(f"{where}: unknown key {str(key)!r}{hint}")
            try:
                checked[key] = _convert(value, self._hints[key])
            except TypeError:
                expected = _describe(self._hints[key])
                message = f"{where}: {key}: got {_show(value)}, expected {expected}"
                if isinstance(value, str) and "one of" in expected:
                    message += did_you_mean(value, _options(self._hints[key]))
                elif isinstance(value, bool):
                    message += " (YAML reads yes, no, on and off as booleans: put a word in quotes)"
                raise UsageError(message) from None
            choices = self._choices.get(key)
            if choices is not None and checked[key] is not None and checked[key] not in choices:
                raise UsageError(
                    f"{where}: {key}: got {_show(value)}, expected one of {', '.join(map(repr, choices))}"
                    f"{did_you_mean(str(value), map(str, choices))}"
                )
        return checked

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            if not flag.startswith("-"):
                raise UsageError(f"unexpected argument {_show(flag)}; arguments are of the form --name value")
            options = [f"--{name}" for name in [*self._hints, "config"]]
            hint = did_you_mean("--" + flag.lstrip("-").replace("-", "_"), options) or "; --help lists the flags"
            raise UsageError(f"unknown flag {flag!r}{hint}")
        return parsed, []

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _take_config(args: Iterable[str]) -> tuple[list[str], str | None]:
    """The arguments without `--config FILE` or `--config=FILE`, and the file."""
    remaining: list[str] = []
    paths: list[str] = []
    iterator = iter(args)
    for arg in iterator:
        if arg == "--config":
            path = next(iterator, "")
            if not path or path.startswith("--"):
                raise UsageError("--config needs a file: --config recipes/NAME.yaml")
            paths.append(path)
        elif arg.startswith("--config="):
            paths.append(arg.partition("=")[2])
        else:
            remaining.append(arg)
    if len(paths) > 1:
        raise UsageError(f"--config was given {len(paths)} times: {', '.join(paths)}; one file is allowed")
    return remaining, paths[0] if paths else None


def _read_yaml(path: str) -> dict[Any, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 wants a dot in `1e-6`; everybody else, YAML 1.2 included, reads it as a number."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"), list("-+.0123456789")
    )
    if not os.path.isfile(path):
        folder = Path(path).parent
        siblings = sorted(str(file) for file in folder.glob("*.y*ml")) if folder.is_dir() else []
        raise UsageError(f"--config: there is no file {path!r}{did_you_mean(path, siblings)}")
    with usage_errors(path), open(path, encoding="utf-8") as file:
        try:
            config = yaml.load(file, Loader)
        except yaml.YAMLError as error:
            raise UsageError(f"{path}: no valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: got {_show(config)}, expected a mapping of keys to values")
    return config


def _convert(value: Any, hint: Any) -> Any:
    """`value`, as a field of type `hint` takes it; raises `TypeError` where it does not."""
    origin: Any = get_origin(hint)
    arguments = get_args(hint)
    if origin in (Union, UnionType):
        # The arm of the value's own type first: "1e-6" stays text in `float | str`.
        for arm in sorted(arguments, key=lambda arm: type(value) not in (arm, get_origin(arm))):
            try:
                return _convert(value, arm)
            except TypeError:
                continue
        raise TypeError
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            raise TypeError
        return value
    if isinstance(origin, type):
        if not isinstance(value, origin):
            raise TypeError
        if isinstance(value, list) and arguments:
            return [_convert(item, arguments[0]) for item in value]
        if isinstance(value, dict) and arguments:
            return {_convert(key, arguments[0]): _convert(item, arguments[1]) for key, item in value.items()}
        return value
    if hint is Any or not isinstance(hint, type):
        return value
    if issubclass(hint, Enum):
        if value not in [option.value for option in hint]:
            raise TypeError
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        try:
            return float(value)
        except ValueError:
            raise TypeError from None
    if hint is int and isinstance(value, bool):
        raise TypeError
    # What YAML writes as text or a mapping, and the dataclass turns into an object of its own.
    if issubclass(hint, os.PathLike):
        hint = str
    elif is_dataclass(hint):
        hint = dict
    if not isinstance(value, hint):
        raise TypeError
    return value


def _options(hint: Any) -> list[str]:
    """Names that a field of type `hint` allows, if it lists them."""
    if get_origin(hint) is Literal:
        return [str(option) for option in get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [str(option.value) for option in hint]
    return [name for arm in get_args(hint) for name in _options(arm)]


def _describe(hint: Any) -> str:
    """A type as a person reads it: `float`, `list[str] or None`, `one of 'a', 'b'`."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(arm) for arm in get_args(hint))
    if get_origin(hint) is Literal or (isinstance(hint, type) and issubclass(hint, Enum)):
        return f"one of {', '.join(map(repr, _options(hint)))}"
    if hint is NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _show(value: Any) -> str:
    """A value of a file and its type, short and on one line."""
    text = repr(value)
    return f"{text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + '...'} ({type(value).__name__})"
