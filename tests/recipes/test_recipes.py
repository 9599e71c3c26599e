"""Recipes as they are launched: what a run leaves behind, and how bad input ends."""

import json
import re
import shutil

import pytest
import yaml
from scripts import ROOT, load_script, run_python
from transformers import AutoModelForCausalLM, AutoTokenizer

from spiral_trl.cli import run_recipe, self_play_parser
from spiral_trl.games.registry import canonical_name
from spiral_trl.players.registry import check_player
from spiral_trl.records import Ending, dataset_to_episodes
from spiral_trl.training.checks import can_play, check_embedded_games


RECIPES = ROOT / "recipes"
ALL = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "accelerate")
# Made up; it stands where a user's would
TOKEN = "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ123456"
SHORT = (
    "--max_steps 4 --games_per_generation 64 --warm_start_steps 40 --eval_steps 2 --eval_games 16 --logging_steps 2 "
    "--save_steps 2 --ref_model_sync_steps 2 --report_pairs 20 --replays 5"
).split()


kuhn = load_script("recipes/kuhn.py")


# ------------------------------------------------------------------------------------------------------- every YAML


def recipe_of(path):
    """The recipe that a file names on its first line."""
    return re.match(r"# recipes/(\w+)\.py\b", path.read_text())[1]


def parsed(path):
    """What the recipe that a file names on its first line reads in it: one instance of each of its dataclasses."""
    recipe = recipe_of(path)
    parser = load_script(f"recipes/{recipe}.py").make_parser() if recipe == "sft" else self_play_parser()
    # A machine without a GPU refuses bf16, which says nothing about the file
    return parser.parse_args_and_config(["--config", str(path), "--bf16", "false", "--use_cpu", "true"])


# Those of recipes that train; what the others read is tested in test_sae_report_recipe.py
YAMLS = [path for path in ALL if recipe_of(path) != "sae_report"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_recipe_file_names_its_recipe_and_how_it_is_launched(path):
    text = path.read_text()
    assert (RECIPES / f"{recipe_of(path)}.py").is_file()
    launch = rf"^# Launch: .*recipes/{recipe_of(path)}\.py (\\\n# +)?--config recipes/{path.name}\b"
    assert re.search(launch, text, re.MULTILINE)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_recipe_file_is_read_by_its_recipe(path, keep_environment):
    run, args, model_args = parsed(path)
    given = yaml.safe_load(path.read_text())
    assert given["model_name_or_path"] == model_args.model_name_or_path
    assert given["games"] == run.games
    assert [canonical_name(game) for game in run.games]
    assert given.get("max_steps", args.max_steps) == args.max_steps
    for opponent in run.report_opponents:
        assert any(can_play(opponent, game) for game in run.games)
    if model_args.model_name_or_path == "embedded" and hasattr(args, "max_completion_length"):
        check_embedded_games(run.games, args.max_completion_length, run.embedded_reasoning)


def test_there_are_recipe_files():
    assert {"kuhn_tiny.yaml", "kuhn_qwen3_4b.yaml", "multi_game_tiny.yaml", "sft_kuhn_tiny.yaml"} <= {
        path.name for path in YAMLS
    }
    assert {path.name for path in ALL if path not in YAMLS} == {
        f"sae_report_{name}.yaml" for name in ("gpt2", "kuhn_tiny", "qwen3_4b")
    }


PAPER = [path for path in YAMLS if re.search(r"qwen3_4b|r1_distill", path.name) and "sft" not in path.name]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.name)
def test_files_of_the_paper_differ_only_in_what_they_are_about(path, keep_environment):
    given, base = (yaml.safe_load(p.read_text()) for p in (path, RECIPES / "kuhn_qwen3_4b.yaml"))
    about = {
        "games", "output_dir", "model_name_or_path", "advantage", "baseline_decay", "opponents", "games_per_generation",
        "eval_opponents", "report_opponents", "illegal_moves", "max_completion_length",
    }  # fmt: skip
    assert {key for key in given.keys() | base.keys() if given.get(key) != base.get(key)} <= about


def test_the_papers_opponents_and_ablation(keep_environment):
    def of(name):
        return parsed(RECIPES / f"kuhn_qwen3_4b{name}.yaml")[1]

    assert of("").opponent_weights == {"self": 1.0} and of("").advantage == "rae"
    assert of("_no_rae").advantage == "none" and of("_no_rae").opponent_weights == {"self": 1.0}
    assert of("_random").opponent_weights == {"random": 1.0}
    (fixed,) = of("_fixed").opponent_weights
    check_player(fixed, "kuhn_poker(rounds=5)")
    assert "Mistral-Small" in fixed


def test_the_papers_recipe_has_the_papers_settings(keep_environment):
    flags = ["--bf16", "false", "--use_cpu", "true"]
    path = RECIPES / "kuhn_qwen3_4b.yaml"
    run, args, model_args = self_play_parser().parse_args_and_config(["--config", str(path), *flags])
    assert model_args.model_name_or_path == "Qwen/Qwen3-4B-Base"
    assert run.games == ["kuhn_poker(rounds=5)"]
    assert (args.learning_rate, args.lr_scheduler_type, args.weight_decay, args.max_grad_norm) == (
        1e-6,
        "constant",
        0,
        1,
    )
    assert (args.adam_beta1, args.adam_beta2, args.epsilon, args.beta) == (0.9, 0.95, 0.2, 0)
    assert (args.max_steps, args.num_iterations, args.max_completion_length) == (800, 2, 8192)
    assert (args.temperature, args.top_p, args.advantage, args.baseline_decay) == (1.0, 1.0, "rae", 0.95)
    assert args.loss_type == "dr_grpo"


# ------------------------------------------------------------------------------------------------ the embedded model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Output folder and printed text of a short run of recipes/kuhn.py, as a user launches it."""
    folder = tmp_path_factory.mktemp("kuhn") / "out"
    config = RECIPES / "kuhn_tiny.yaml"
    done = run_python(
        RECIPES / "kuhn.py", "--config", config, "--output_dir", folder, "--seed", 3, "--hub_token", TOKEN, *SHORT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done.stdout


def test_a_run_leaves_a_model_that_loads(finished):
    folder, _ = finished
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    assert model.config.vocab_size == len(tokenizer)
    assert {"model.safetensors", "config.json", "tokenizer.json", "report.html", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    assert not (folder / "training_args.bin").exists()


def test_a_run_leaves_its_figures(finished):
    folder, _ = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["game"] == "kuhn_poker(observation=compact)"
    exploitability = metrics["exploitability"]
    assert all(0 <= exploitability[stage] <= 2 for stage in ("start", "final", "plain"))
    assert len({exploitability[stage] for stage in ("start", "final", "plain")}) == 3
    assert all(0 <= metrics["illegal_move_rate"][stage] < 0.5 for stage in ("start", "final", "plain"))
    assert metrics["games"] == 4 * 64
    assert 4 * 64 <= metrics["turns"] <= 4 * 64 * 3
    assert metrics["turns"] <= metrics["tokens"] <= 3 * metrics["turns"]
    seconds = metrics["seconds"]
    assert all(seconds[name] > 0 for name in ("total", "generation", "training", "other", "plain_total", "warm_start"))
    assert seconds["generation"] + seconds["training"] + seconds["other"] == pytest.approx(seconds["total"])
    assert metrics["seed"] == 3 and metrics["finished"] is True
    assert {"spiral_trl", "trl", "transformers", "torch", "datasets", "accelerate", "python"} <= set(
        metrics["versions"]
    )
    assert metrics["model"]["embedded"] is True and metrics["recipe"] == "kuhn_tiny.yaml"
    assert [point["step"] for point in metrics["curves"]["self_play"]] == [0, 2, 4]
    assert [point["games"] for point in metrics["curves"]["self_play"]] == [0, 128, 256]
    assert len(metrics["strategy"]) == 12 and {row["opponent"] for row in metrics["results"]} == {"random", "cfr"}
    assert metrics["training"]["plain_overrides"] == {"learning_rate": 3.0e-5}
    assert metrics["training"]["beta"] == 0.6


def test_a_token_reaches_nothing_that_a_run_leaves(finished):
    checked = 0
    for path in finished[0].rglob("*"):
        # Within checkpoints the trainer's own pickle holds every argument; it is never uploaded
        if path.is_file() and path.name != "training_args.bin":
            checked += 1
            assert TOKEN.encode() not in path.read_bytes(), path
    assert checked > 10 and TOKEN not in finished[1]
    assert "<token>" in json.loads((finished[0] / "metrics.json").read_text())["command"]


def test_a_run_leaves_replays(finished):
    from datasets import load_from_disk

    metrics = json.loads((finished[0] / "metrics.json").read_text())
    episodes = dataset_to_episodes(load_from_disk(str(finished[0] / "episodes")))
    assert len(episodes) == 5
    for episode in episodes:
        assert episode.game == "kuhn_poker(observation=compact)" and sum(episode.returns) == 0
        assert episode.ending in (Ending.TERMINAL, Ending.ILLEGAL)
        assert 1 <= len(episode.steps) <= 3
        assert all(step.reply.completion_ids and step.turn.messages for step in episode.steps)
        # By the weights that the run saves, not those of its last generation
        assert {step.reply.policy_version for step in episode.steps} == {metrics["training"]["max_steps"]}


def test_a_run_prints_its_summary(finished):
    folder, printed = finished
    assert "exploitability, chips" in printed and "equilibrium" in printed
    assert f"report: {folder}/report.html" in printed
    assert "kuhn_poker(observation=compact)" in (folder / "README.md").read_text()
    assert "<html" in (folder / "report.html").read_text()


def in_process(argv, capsys):
    """Exit code and what stands on stderr after a recipe in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_recipe(kuhn.main, argv)
    return ended.value.code, capsys.readouterr().err


def test_a_run_cut_off_goes_on_where_it_was(finished, tmp_path, capsys, keep_environment):
    # As a kill between the two checkpoints leaves the folder
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    kept = [path.name for path in folder.glob("checkpoint-*")]
    assert kept == ["checkpoint-4"]
    for name in ("metrics.json", "README.md", "report.html", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "plain")
    argv = ["--config", str(RECIPES / "kuhn_tiny.yaml"), "--output_dir", str(folder), "--seed", "3", *SHORT]
    assert in_process([*argv, "--resume_from_checkpoint", "true"], capsys)[0] == 0
    once, resumed = (json.loads((path / "metrics.json").read_text()) for path in (finished[0], folder))
    for name in ("exploitability", "illegal_move_rate", "results", "strategy", "curves", "games", "turns", "tokens"):
        assert resumed[name] == once[name], name
    weights = [(path / "model.safetensors").read_bytes() for path in (finished[0], folder)]
    assert weights[0] == weights[1]


# ---------------------------------------------------------------------------------------------------- another model


def test_the_papers_recipe_runs_with_a_small_model_in_its_place(small_qwen, tmp_path):
    flags = (
        f"--model_name_or_path {small_qwen} --output_dir {tmp_path / 'out'} --max_steps 2 --max_completion_length 8 "
        "--games_per_generation 6 --gradient_accumulation_steps 2 --bf16 false --use_cpu true --use_vllm false "
        "--gradient_checkpointing false --eval_steps 2 --eval_games 4 --report_pairs 2 --save_steps 1 "
        "--dataloader_pin_memory false"
    ).split()
    done = run_python(
        *("-m", "accelerate.commands.launch", "--config_file", RECIPES / "accelerate" / "cpu.yaml"),
        *(RECIPES / "kuhn.py", "--config", RECIPES / "kuhn_qwen3_4b.yaml", *flags),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["game"] == "kuhn_poker(rounds=5)"
    assert metrics["games"] == 6 and metrics["model"]["embedded"] is False
    assert metrics["model"]["base_model"] is None  # a folder is no name on the Hub
    assert metrics["exploitability"]["final"] is not None
    assert not (tmp_path / "out" / "training_args.bin").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


# --------------------------------------------------------------------------------------------------------- bad input


def with_key(tmp_path, **keys):
    """kuhn_tiny.yaml with other keys, as a file."""
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((RECIPES / "kuhn_tiny.yaml").read_text()) | keys))
    return str(path)


BAD = {
    "an unknown game": ({"games": ["kuhn_pocker"]}, ["unknown game 'kuhn_pocker'", "did you mean 'kuhn_poker'?"]),
    "an unknown parameter": ({"games": ["kuhn_poker(round=5)"]}, ["'round'", "did you mean 'rounds'?"]),
    "a game named twice": ({"games": ["kuhn_poker", "kuhn_poker(rounds=1)"]}, ["named twice"]),
    "no game": ({"games": []}, ["games is empty"]),
    "an unknown key": ({"learning_rat": 1e-3}, ["unknown key 'learning_rat'", "did you mean 'learning_rate'?"]),
    "a wrong type": ({"max_steps": "many"}, ["max_steps", "'many' (str)", "expected int"]),
    "a wrong choice": ({"lr_scheduler_type": "cosin"}, ["cosin is not a valid SchedulerType", "'cosine'"]),
    "a dataset": ({"dataset_name": "x"}, ["dataset_name='x'", "takes no dataset"]),
    "epochs": ({"num_train_epochs": 3}, ["num_train_epochs=3", "set max_steps"]),
    "generations": ({"num_generations": 8}, ["num_generations=8", "set games_per_generation"]),
    "a batch that cannot be divided": (
        {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
        ["steps_per_generation (3) must be divisible by gradient_accumulation_steps (2)"],
    ),
    "an unknown opponent": ({"report_opponents": ["cfrr"]}, ["unknown player 'cfrr'", "did you mean 'cfr'?"]),
    "an unknown opponent in evaluation": ({"eval_opponents": ["rondom"]}, ["did you mean 'random'?"]),
    "an opponent that cannot play": (
        {"games": ["kuhn_poker(rounds=5,rules=spiral)"]},
        ["cfr cannot play kuhn_poker(rounds=5,rules=spiral)"],
    ),
    "a game the embedded model cannot read": (
        {"games": ["kuhn_poker(observation=compact)", "kuhn_poker"]},
        ["reads only the compact observation", "not kuhn_poker,"],
    ),
    "a game without a bound on its numbers": (
        {"games": ["simple_negotiation(observation=compact)"], "report_opponents": ["random"]},
        ["The embedded model reads simple_negotiation(resources=2,observation=compact)"],
    ),
    "replies too short for the game": ({"max_completion_length": 2}, ["max_completion_length is 2", "up to 3 tokens"]),
    "an impossible size": ({"embedded_hidden_size": 12}, ["hidden_size=12", "multiple of 8"]),
    "no model": ({"model_name_or_path": None}, ["model_name_or_path is missing"]),
    "too few deals": ({"report_pairs": 1}, ["report_pairs is 1"]),
    "an illegal policy": ({"illegal_moves": "forgive"}, ["'forgive'", "forfeit"]),
    "an unknown advantage": ({"advantage": "gae"}, ["There is no advantage 'gae'", "rae"]),
    "a loss over rows": ({"loss_type": "grpo"}, ["loss_type is 'grpo'", "dr_grpo"]),
    "a refresh of nothing": ({"beta": 0.0}, ["sync_ref_model=True", "beta is 0"]),
    "a refresh beside an adapter": ({"use_peft": True}, ["sync_ref_model=True cannot be used with PEFT"]),
    "another field for plain self-play": ({"plain_overrides": {"beta": 1.0}}, ["plain_overrides: beta", "magnet"]),
    "an unknown field for plain self-play": (
        {"plain_overrides": {"learn_rate": 1.0}},
        ["plain_overrides: learn_rate", "did you mean 'learning_rate'?"],
    ),
    "no number for plain self-play": (
        {"plain_overrides": {"learning_rate": "fast"}},
        ["plain_overrides: learning_rate is 'fast'"],
    ),
    "no temperature": ({"temperature": 0.0}, ["temperature is 0.0", "above 0"]),
    "a negative learning rate": ({"learning_rate": -1.0}, ["learning_rate is -1.0"]),
    "nothing to resume": ({"resume_from_checkpoint": "true"}, ["no whole checkpoint to resume from"]),
}


def assert_one_line(code, stderr, parts):
    lines = stderr.splitlines()
    assert code == 2, stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    assert all(part in lines[0] for part in parts), lines[0]


@pytest.fixture
def no_model(monkeypatch):
    """Fails where a model would be made or loaded."""
    from spiral_trl.training import run

    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    for name in ("SelfPlayTrainer", "save_tiny_model", "warm_start"):
        monkeypatch.setattr(run, name, fail)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_before_a_model_is_loaded(case, tmp_path, capsys, no_model, keep_environment):
    keys, parts = BAD[case]
    argv = ["--config", with_key(tmp_path, **keys), "--output_dir", str(tmp_path / "out")]
    assert_one_line(*in_process(argv, capsys), parts)
    assert not (tmp_path / "out").exists()


def test_the_check_of_loading_sees_it(tmp_path, no_model, keep_environment):
    argv = ["--config", str(RECIPES / "kuhn_tiny.yaml"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(AssertionError, match="a model was loaded"):
        run_recipe(kuhn.main, argv)


def test_a_file_may_be_named_in_one_word(tmp_path, capsys, no_model, keep_environment):
    path = with_key(tmp_path, advantage="gae")
    assert_one_line(*in_process([f"--config={path}"], capsys), ["There is no advantage 'gae'"])


# Keys with which a recipe plays another model
OTHER = {"games": ["kuhn_poker"], "report_opponents": ["random"]}


def test_a_model_folder_that_does_not_exist(tmp_path, capsys, no_model, keep_environment):
    folder = tmp_path / "nowhere"
    argv = ["--config", with_key(tmp_path, model_name_or_path=str(folder), **OTHER), "--output_dir", f"{tmp_path}/out"]
    assert_one_line(*in_process(argv, capsys), [f"The model folder {folder} does not exist"])


def test_a_model_that_is_nowhere(tmp_path, capsys, no_model, keep_environment):
    config = with_key(tmp_path, model_name_or_path="nobody/nothing-of-the-kind", **OTHER)
    argv = ["--config", config, "--output_dir", f"{tmp_path}/out"]
    assert_one_line(*in_process(argv, capsys), ["model_name_or_path='nobody/nothing-of-the-kind'"])


def test_a_folder_without_a_model(tmp_path, capsys, no_model, keep_environment):
    (tmp_path / "empty").mkdir()
    config = with_key(tmp_path, model_name_or_path=str(tmp_path / "empty"), **OTHER)
    argv = ["--config", config, "--output_dir", f"{tmp_path}/out"]
    assert_one_line(*in_process(argv, capsys), [f"model_name_or_path='{tmp_path / 'empty'}'"])


def test_a_folder_with_a_tokenizer_and_no_weights(small_qwen, tmp_path, capsys, keep_environment):
    folder = tmp_path / "half"
    shutil.copytree(small_qwen, folder)
    (folder / "model.safetensors").unlink()
    config = with_key(tmp_path, model_name_or_path=str(folder), beta=0.0, sync_ref_model=False, **OTHER)
    argv = ["--config", config, "--output_dir", f"{tmp_path}/out"]
    assert_one_line(*in_process(argv, capsys), [f"model_name_or_path='{folder}'", "model.safetensors"])


def test_a_tokenizer_without_a_chat_template(small_qwen, tmp_path, capsys, no_model, keep_environment):
    folder = tmp_path / "base"
    shutil.copytree(small_qwen, folder)
    (folder / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    config = with_key(tmp_path, model_name_or_path=str(folder), **OTHER)
    argv = ["--config", config, "--output_dir", f"{tmp_path}/out"]
    assert_one_line(*in_process(argv, capsys), ["no chat template", "clone_chat_template"])


def test_an_output_folder_that_holds_another_run(tmp_path, capsys, no_model, keep_environment):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("{}")
    argv = ["--config", str(RECIPES / "kuhn_tiny.yaml"), "--output_dir", f"{tmp_path}/out"]
    assert_one_line(*in_process(argv, capsys), [f"{tmp_path}/out holds another run", "overwrite_output_dir=True"])


def test_bad_input_as_a_user_sees_it(tmp_path):
    done = run_python(RECIPES / "kuhn.py", "--games", "kuhn_pocker", "--output_dir", tmp_path / "out")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown game 'kuhn_pocker'; allowed: ") and " kuhn_poker, " in line
    assert line.endswith("; did you mean 'kuhn_poker'?")
