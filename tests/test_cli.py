"""Reading a recipe's arguments: what is accepted, and the one line that every mistake ends in."""

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import pytest
from scripts import run_python
from trl import GRPOConfig

from spiral_trl.cli import RecipeParser, run_recipe
from spiral_trl.errors import UsageError


class Seat(str, Enum):
    FIRST = "first"
    SECOND = "second"


@dataclass
class ScriptArguments:
    games: list[str] = field(default_factory=lambda: ["kuhn_poker"], metadata={"help": "Games."})
    rounds: int = 1
    decay: float = 0.95
    verbose: bool = False
    opponent: str | None = None
    rules: Literal["canonical", "spiral"] = "canonical"
    mode: str = field(default="self", metadata={"choices": ["self", "arena"]})
    seat: Seat = Seat.FIRST
    limit: int | None = None
    extra: dict[str, Any] | str | None = None
    report: None | str | list[str] = None


def parse(tmp_path, yaml="", *flags, types=(ScriptArguments,)):
    file = tmp_path / "recipe.yaml"
    file.write_text(textwrap.dedent(yaml))
    return RecipeParser(types).parse_args_and_config(["--config", str(file), *flags])[0]


def message(tmp_path, yaml="", *flags, types=(ScriptArguments,)):
    with pytest.raises(UsageError) as caught:
        parse(tmp_path, yaml, *flags, types=types)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_values_arrive_as_their_fields_say(tmp_path):
    args = parse(
        tmp_path,
        """
        games: [kuhn_poker, tic_tac_toe]
        rounds: 5
        decay: 1
        verbose: true
        opponent: random
        rules: spiral
        mode: arena
        seat: second
        limit: null
        extra: {rate: 1e-6, deep: [1E5, -2.5e-3]}
        report: [tensorboard, trackio]
        """,
    )
    assert args == ScriptArguments(
        games=["kuhn_poker", "tic_tac_toe"],
        rounds=5,
        decay=1.0,
        verbose=True,
        opponent="random",
        rules="spiral",
        mode="arena",
        seat="second",
        limit=None,
        extra={"rate": 1e-6, "deep": [1e5, -0.0025]},
        report=["tensorboard", "trackio"],
    )
    assert isinstance(args.decay, float)


@pytest.mark.parametrize("text", ["1e-6", "'1e-6'", "1.0e-6", "0.000001"])
def test_a_float_may_be_written_in_any_common_form(tmp_path, text):
    assert parse(tmp_path, f"decay: {text}").decay == 1e-6


def test_flags_go_before_the_file_and_either_spelling_works(tmp_path):
    assert parse(tmp_path, "rounds: 5", "--rounds", "7").rounds == 7
    assert parse(tmp_path, "rounds: 5").rounds == 5
    file = tmp_path / "recipe.yaml"
    (args,) = RecipeParser(ScriptArguments).parse_args_and_config([f"--config={file}", "--decay=0.5"])
    assert (args.rounds, args.decay) == (5, 0.5)
    assert RecipeParser(ScriptArguments).parse_args_and_config([]) == (ScriptArguments(),)


@pytest.mark.parametrize(
    ("yaml", "parts"),
    [
        ("rounds: five", ["rounds", "'five' (str)", "expected int"]),
        ("rounds: 2.5", ["rounds", "2.5 (float)", "expected int"]),
        ("rounds: true", ["rounds", "True (bool)", "expected int"]),
        ("rounds: null", ["rounds", "None", "expected int"]),
        ("decay: fast", ["decay", "'fast' (str)", "expected float"]),
        ("decay: [0.5]", ["decay", "[0.5] (list)", "expected float"]),
        ("decay: yes", ["decay", "True (bool)", "expected float"]),
        ("verbose: 1", ["verbose", "1 (int)", "expected bool"]),
        ("verbose: 'true'", ["verbose", "'true' (str)", "expected bool"]),
        ("games: kuhn_poker", ["games", "'kuhn_poker' (str)", "expected list[str]"]),
        ("games: [1]", ["games", "[1] (list)", "expected list[str]"]),
        ("opponent: 3", ["opponent", "3 (int)", "expected str or None"]),
        ("opponent: no", ["opponent", "False (bool)", "expected str or None", "in quotes"]),
        ("limit: 1.5", ["limit", "1.5 (float)", "expected int or None"]),
        ("extra: 3", ["extra", "3 (int)", "expected dict[str, Any] or str or None"]),
        ("extra: {1: a}", ["extra", "expected dict[str, Any] or str or None"]),
        ("report: [1]", ["report", "expected None or str or list[str]"]),
        ("rules: spirl", ["rules", "'spirl' (str)", "'canonical', 'spiral'", "did you mean 'spiral'?"]),
        ("mode: areena", ["mode", "'areena' (str)", "'self', 'arena'", "did you mean 'arena'?"]),
        ("seat: third", ["seat", "'third' (str)", "'first', 'second'"]),
        ("round: 5", ["unknown key 'round'", "did you mean 'rounds'?"]),
        ("on: 5", ["unknown key 'True'"]),
        ("config: other.yaml", ["unknown key 'config'"]),
        ("env: PATH", ["env", "'PATH' (str)", "mapping"]),
        ("- rounds", ["['rounds'] (list)", "expected a mapping"]),
        ("", ["None (NoneType)", "expected a mapping"]),
        ("rounds: [1", ["no valid YAML", "line 1"]),
    ],
)
def test_a_mistake_in_the_file_names_file_key_value_and_what_is_allowed(tmp_path, yaml, parts):
    text = message(tmp_path, yaml)
    assert "recipe.yaml" in text
    for part in parts:
        assert part in text


def test_a_long_value_is_cut(tmp_path):
    assert len(message(tmp_path, f"rounds: {'x' * 5000}")) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--round", "5"], ["unknown flag '--round'", "did you mean '--rounds'?"]),
        (["--ver"], ["unknown flag '--ver'"]),
        (["--confg=x.yaml"], ["unknown flag '--confg'", "did you mean '--config'?"]),
        (["--rounds", "five"], ["--rounds", "invalid int value: 'five'"]),
        (["--rounds"], ["--rounds", "expected one argument"]),
        (["--rules", "spirl"], ["--rules", "invalid choice: 'spirl'", "'canonical', 'spiral'"]),
        (["--verbose", "perhaps"], ["--verbose", "perhaps"]),
        (["stray"], ["unexpected argument 'stray'"]),
        (["--config"], ["--config needs a file"]),
        (["--config", "--rounds"], ["--config needs a file"]),
        (["--config", "a.yaml", "--config", "b.yaml"], ["2 times", "a.yaml, b.yaml"]),
    ],
)
def test_a_mistake_in_the_flags_is_named(flags, parts):
    with pytest.raises(UsageError) as caught:
        RecipeParser(ScriptArguments).parse_args_and_config(flags)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    (tmp_path / "kuhn_tiny.yaml").write_text("rounds: 1")
    with pytest.raises(UsageError, match=r"no file '.*kuhn_tinny\.yaml'; did you mean '.*kuhn_tiny\.yaml'\?"):
        RecipeParser(ScriptArguments).parse_args_and_config(["--config", str(tmp_path / "kuhn_tinny.yaml")])


def test_a_required_field_must_come_from_somewhere(tmp_path):
    @dataclass
    class Needs:
        model: str

    assert parse(tmp_path, "model: tiny", types=(Needs,)).model == "tiny"
    assert "--model" in message(tmp_path, "env: {}", types=(Needs,))


def test_the_environment_is_set_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIRAL_TRL_TEST", "before")
    parse(tmp_path, "env: {SPIRAL_TRL_TEST: 5}")
    assert os.environ["SPIRAL_TRL_TEST"] == "5"


GRPO = """
output_dir: out
use_cpu: true
bf16: false
"""


def test_the_fields_of_grpo_config_are_checked_too(tmp_path):
    types = (GRPOConfig, ScriptArguments)
    args = parse(
        tmp_path,
        GRPO + "learning_rate: 1e-6\nreport_to: none\nlr_scheduler_kwargs: {min_lr_rate: 2e-2}\nsave_strategy: steps\n"
        "max_steps: 7\nrounds: 2\n",
        types=types,
    )
    assert (args.learning_rate, args.max_steps, args.save_strategy) == (1e-6, 7, "steps")
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.02}
    for yaml, parts in [
        ("learning_rat: 1", ["unknown key 'learning_rat'", "'learning_rate'"]),
        ("learning_rate: fast", ["learning_rate", "'fast' (str)", "float"]),
        ("max_steps: 1.5", ["max_steps", "1.5 (float)", "int"]),
        ("save_strategy: no", ["save_strategy", "False (bool)", "in quotes"]),
        ("num_generations: 1", ["GRPO requires at least 2 generations"]),
    ]:
        text = message(tmp_path, GRPO + yaml, types=types)
        for part in parts:
            assert part in text


def test_every_default_of_grpo_config_is_one_that_its_field_allows(tmp_path):
    import dataclasses

    parser = RecipeParser(GRPOConfig)
    defaults = {
        item.name: item.default
        for item in dataclasses.fields(GRPOConfig)
        if item.init and item.default is not dataclasses.MISSING and not isinstance(item.default, Enum)
    }
    assert len(defaults) > 100
    # Fields that the libraries declare without `None` and set to it all the same.
    undeclared = {name for name, value in defaults.items() if value is None} & {
        name for name, hint in parser._hints.items() if "None" not in str(hint) and hint is not Any
    }
    assert len(undeclared) < 10
    parser.check({name: value for name, value in defaults.items() if name not in undeclared}, "defaults")


SCRIPT = """
import sys
from dataclasses import dataclass
from spiral_trl.cli import RecipeParser, run_recipe
from spiral_trl.errors import usage_errors

@dataclass
class Arguments:
    game: str = "kuhn_poker"

def main(argv):
    (args,) = RecipeParser(Arguments).parse_args_and_config(argv)
    with usage_errors():
        if args.game == "chess":
            raise ValueError("unknown game 'chess';\\n allowed: kuhn_poker")
    if args.game == "defect":
        raise ValueError("midway")
    print("played", args.game)

run_recipe(main)
"""


def launch(tmp_path, *flags, **environment):
    script = tmp_path / "recipe.py"
    script.write_text(SCRIPT)
    return run_python(script, *flags, **environment)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--game", "chess"], "error: unknown game 'chess'; allowed: kuhn_poker\n"),
        (["--gme", "chess"], "error: unknown flag '--gme'; did you mean '--game'?\n"),
        (["--config", "none.yaml"], "error: --config: there is no file 'none.yaml'\n"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(tmp_path, flags, line):
    result = launch(tmp_path, *flags)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", line)


def test_only_the_first_process_prints(tmp_path):
    result = launch(tmp_path, "--game", "chess", RANK="1")
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


def test_a_run_ends_with_0_and_a_defect_with_its_traceback(tmp_path):
    result = launch(tmp_path, "--game", "kuhn_poker")
    assert (result.returncode, result.stdout, result.stderr) == (0, "played kuhn_poker\n", "")
    result = launch(tmp_path, "--game", "defect")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_main_gets_the_arguments_it_is_run_with():
    seen = []
    with pytest.raises(SystemExit) as stopped:
        run_recipe(seen.append, ["--rounds", "1"])
    assert stopped.value.code == 0
    assert seen == [["--rounds", "1"]]


def test_reading_arguments_needs_no_torch():
    code = "import spiral_trl.cli, sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
