"""Bad input to `spiral-trl sae`: exit code 2 and one line that says what is wrong, before a model is loaded."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from spiral_trl.sae import extra
from spiral_trl.sae.store import TOKEN, rows_of, write_shard, write_store


KUHN = "kuhn_poker(observation=compact)"


@pytest.fixture(scope="module")
def ready(tmp_path_factory, tiny_model):
    """A folder with what every step reads: `model`, `episodes`, `texts.jsonl`, `saes` and `run/codes` by them."""
    from sae_lens import StandardSAE, StandardSAEConfig

    from spiral_trl.sae.dictionaries import load_dictionaries
    from spiral_trl.sae.sources import play_to_read

    folder = tmp_path_factory.mktemp("ready")
    shutil.copytree(tiny_model, folder / "model")
    play_to_read(tiny_model, [KUHN], 4, 0, folder / "episodes", 3)
    (folder / "texts.jsonl").write_text('{"text": "bet"}\n')
    for name, width in (("saes", 32), ("wide", 48), ("others", 32)):
        for layer in (0, 1):
            config = StandardSAEConfig(d_in=width, d_sae=16, apply_b_dec_to_input=False)
            config.metadata.hook_name = f"blocks.{layer}.hook_resid_pre"
            torch.manual_seed(layer + (name == "others"))
            StandardSAE(config).save_model(str(folder / name / f"layer_0{layer}"))
    said = {layer: one.to_dict() for layer, one in load_dictionaries(str(folder / "saes")).items()}
    tokens = np.zeros(40, TOKEN)
    tokens["group"] = tokens["document"] = np.arange(40) // 10
    codes = {layer: rows_of((np.arange(40 * 16).reshape(40, 16) % (5 + layer) == 0) * 1.0) for layer in said}
    about = {"model": "model", "source": {"kind": "made"}, "layers": {str(layer): of for layer, of in said.items()}}
    write_store(folder / "run" / "codes", about)
    write_shard(folder / "run" / "codes", 0, tokens, codes)
    (folder / "file").write_text("")
    (folder / "graph.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def here(ready, tmp_path, monkeypatch):
    """Names are relative; what a test changes is its own."""
    shutil.copytree(ready, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


EPISODES = ["--episodes", "episodes"]
RIGHT = {
    "train": ["model", *EPISODES, "--output", "out"],
    "collect": ["model", *EPISODES, "--dictionaries", "saes", "--output", "out"],
    "relate": ["run"],
    "report": ["run", "--model", "model", "--dictionaries", "saes", "--output", "page.html"],
    "compare": ["out", "--before", "run", "--after", "run"],
    "ablate": ["run", "--model", "model", "--dictionaries", "saes", *EPISODES],
}
PLAY = ["run", "--model", "model", "--dictionaries", "saes", "--game", KUHN, "--features", "1/3"]


def changed(argv, *replacement):
    """`argv` with options replaced or added, and with its first argument replaced where one is given first."""
    found, given = list(argv), list(replacement)
    if given and not given[0].startswith("--"):
        found[0] = given.pop(0)
    while given:
        option, *rest = given
        values = []
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if option in found:
            at = found.index(option)
            end = next((n for n in range(at + 1, len(found)) if found[n].startswith("--")), len(found))
            del found[at:end]
        found += [option, *values]
        given = rest
    return found


def check_line(code, out, err, message):
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    assert re.search(message, err), err


MISSING = "The model folder ./modle does not exist; did you mean 'model'\\?"
LINES = [
    # The model
    ("train", ["./modle"], MISSING),
    ("collect", ["./modle"], MISSING),
    ("report", ["--model", "./modle"], MISSING),
    ("ablate", ["--model", "./modle"], MISSING),
    ("train", ["saes"], "saes holds no model"),
    # Layers
    ("train", ["--layers", "0-9"], "layer 3 was asked for, but the model has layers 0 .* to 2"),
    ("train", ["--layers", "last"], "--layers 'last': layers are written as 0,3-5"),
    ("train", ["--layers", "2-1"], "--layers '2-1': 2-1 ends before it begins"),
    ("train", ["--layers", "0,"], "--layers '0,': layers are written as 0,3-5"),
    ("collect", ["--layers", "7"], "layer 7 was asked for, but the model has layers 0 .* to 2"),
    ("collect", ["--layers", "2"], "saes has no dictionary of layer 2; it has those of 0, 1"),
    # Dictionaries
    ("collect", ["--dictionaries", "seas"], "there is no folder seas; did you mean 'saes'\\?"),
    ("collect", ["--dictionaries", "wide"], "reads streams of width 48, but the model's have 32"),
    ("collect", ["--dictionaries", "model"], "model holds no dictionaries"),
    ("report", ["--dictionaries", "wide"], "reads streams of width 48, but the model's have 32"),
    ("report", ["--dictionaries", "others"], "was collected with .*saes/layer_00, not with .*others/layer_00"),
    ("relate", ["--dictionaries", "others"], "was collected with .*saes/layer_00, not with .*others/layer_00"),
    ("ablate", ["--dictionaries", "wide"], "reads streams of width 48, but the model's have 32"),
    ("ablate", ["--dictionaries", "others"], "was collected with .*saes/layer_00, not with .*others/layer_00"),
    (
        "collect",
        ["--dictionaries", "release:gpt2-small-res-jbb"],
        "SAELens has no release 'gpt2-small-res-jbb'; did you mean 'gpt2-small-res-jb'\\?",
    ),
    (
        "relate",
        ["--dictionaries", "release:gpt2-small-res-jb/blocks.3.hook_resid_per"],
        "has no 'blocks.3.hook_resid_per'; did you mean 'blocks.\\d+.hook_resid_pre'\\?",
    ),
    # What is read
    ("train", ["--episodes", "./epsiodes"], "./epsiodes does not exist; did you mean 'episodes'\\?"),
    ("collect", ["--episodes", "./epsiodes"], "./epsiodes does not exist; did you mean 'episodes'\\?"),
    ("ablate", ["--episodes", "./epsiodes"], "./epsiodes does not exist; did you mean 'episodes'\\?"),
    ("train", ["--episodes", "saes"], "saes holds no episodes"),
    ("train", ["--texts", "texts.jsonl"], "one of --episodes and --texts"),
    ("relate", ["nowhere"], "nowhere does not exist"),
    # Numbers
    ("train", ["--tokens", "0"], "--tokens has to be at least 1, not 0"),
    ("train", ["--features", "0"], "--features has to be at least 1, not 0"),
    ("train", ["--features", "4", "--active", "5"], "--active 5 of --features 4"),
    ("train", ["--learning-rate", "nan"], "--learning-rate has to be above 0, not nan"),
    ("train", ["--architecture", "topkk"], "architecture='topkk'; allowed: .*; did you mean 'topk'\\?"),
    ("train", ["--max-tokens", "0"], "--max-tokens has to be at least 1, not 0"),
    ("collect", ["--max-length", "1"], "--max-length has to be at least 2, not 1"),
    ("relate", ["--top-k", "0"], "--top-k has to be at least 1, not 0"),
    ("relate", ["--pass-threshold", "1.5"], "pass_threshold.*1.5"),
    ("relate", ["--gate-threshold", "nan"], "gate_threshold.*nan"),
    ("relate", ["--community-measure", "pearsn"], "'pearsn'; allowed: .*; did you mean 'pearson'\\?"),
    ("relate", ["--community-measure", "decoder_cosine"], "decoder_cosine needs --dictionaries"),
    ("relate", ["--processes", "0"], "--processes has to be at least 1, not 0"),
    ("report", ["--features", "0"], "--features has to be at least 1, not 0"),
    ("ablate", ["--num-features", "0"], "--num-features has to be at least 1, not 0"),
    # Where it goes
    ("train", ["--output", "file"], "--output file cannot be a folder: file is a file"),
    ("collect", ["--output", "file/codes"], "--output file/codes cannot be a folder: file is a file"),
    ("report", ["--output", "file"], "--output file cannot be a folder: file is a file"),
    ("report", ["--output", "file/page.html"], "file cannot be a folder: file is a file"),
    ("report", ["--output", "saes.html"], "--output saes.html is a folder"),
    ("compare", ["file"], "the folder file cannot be a folder: file is a file"),
    *((step, ["--json", "saes"], "--json saes is a folder") for step in RIGHT),
    *((step, ["--json", "no/such.json"], "the folder of --json no/such.json does not exist") for step in RIGHT),
    # A run
    *((step, ["file"], "file is no folder of a run") for step in ("relate", "ablate")),
    *((step, ["saes"], "saes holds no codes: there is no store.json") for step in ("relate", "ablate")),
    ("report", ["saes"], "--model is for the folder of a run; saes is none"),
    ("report", ["--community", "3"], "--export FILE goes with one of --community ID and --around LAYER/FEATURE"),
    ("report", ["--community", "3", "--export", "a.json"], "it has no relations"),
    ("report", ["--community", "3", "--export", "a.html"], "--export a.html has to end with .json"),
    ("compare", ["--after", "nowhere"], "nowhere does not exist"),
    ("compare", ["--after", "saes"], "saes holds no codes"),
    ("compare", ["--control", "run"], "a control store is held against own games, and none were given"),
]


@pytest.mark.parametrize(
    ("step", "given", "message"), LINES, ids=lambda part: " ".join(part) if isinstance(part, list) else None
)
def test_a_line_says_what_is_wrong(run, no_model, step, given, message):
    Path("saes.html").mkdir()
    check_line(*run("sae", step, *changed(RIGHT[step], *given)), message)
    assert not Path("out").exists() and not Path("page.html").exists() and not Path("a.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--game", "kuhn_pokr"], "unknown game 'kuhn_pokr'; .*; did you mean 'kuhn_poker'\\?"),
        (["--game", "pig(players=3)"], "has 3 seats"),
        (["--opponent", "cfrr"], "unknown player 'cfrr'; .*; did you mean 'cfr'\\?"),
        (["--opponent", "minimax"], "minimax cannot play .*hidden information"),
        (["--features", "1/16"], "--features 1/16: layer 1 has features 0 to 15"),
        (["--features", "2/1"], "codes has layers 0, 1, not 2"),
        (["--features", "one"], "--features 'one': a feature is written as LAYER/NUMBER"),
        (["--pairs", "1"], "--pairs has to be at least 2, not 1"),
        (["--random-sets", "0"], "--random-sets has to be at least 1, not 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens has to be at least 1, not 0"),
        (["--model", "./modle"], MISSING),
        (["--dictionaries", "others"], "was collected with .*saes/layer_00, not with .*others/layer_00"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else None,
)
def test_a_line_says_what_is_wrong_with_play(run, no_model, given, message):
    check_line(*run("sae", "ablate", *changed(PLAY, *given)), message)


def test_features_without_a_game(run, no_model):
    check_line(*run("sae", "ablate", *PLAY[:5], "--features", "1/3"), "--game and --features go together")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sae"], "the following arguments are required: STEP; see spiral-trl sae --help"),
        (["sae", "realte", "run"], "realte"),
        (["sae", "relate", "run", "--topk", "3"], "unrecognized arguments: --topk 3"),
        (["sae", "compare", "out"], "--before is held against --after, --own or both"),
        (["sae", "compare", "out", "--before", "run"], "--before is held against --after, --own or both"),
        (["sae", "compare", "out", "--before", "run", "--own", "run", "--graphs"], "--graphs needs --after"),
        (["sae", "report", "run"], "--output says where the page goes"),
        (
            ["sae", "report", "run", "graph.json", "--output", "p.html"],
            "a page is of one run, or of graphs; run is a run",
        ),
        (
            ["sae", "report", "graf.json", "--output", "p.html"],
            "graf.json does not exist; did you mean 'graph.json'\\?",
        ),
        (["sae", "report", "graph.json", "--output", "p.html"], "graph.json: no node-link graph"),
        (["sae", "report", "texts.jsonl", "--output", "p.html"], "texts.jsonl: no node-link graph"),
        (["sae", "report", "model/model.safetensors", "--output", "p.html"], "holds no JSON"),
        (["sae", "report", "saes", "--output", "p.html"], "saes holds neither codes of a run nor a .json file"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else None,
)
def test_arguments_that_do_not_go_together(run, no_model, argv, message):
    check_line(*run(*argv), message)
    assert not Path("out").exists() and not Path("p.html").exists()


TEXTS = ["model", "--texts", "texts.jsonl", "--output", "out"]


@pytest.mark.parametrize(
    ("name", "content", "given", "message"),
    [
        ("texts.jsonl", '{"txt": "bet"}\n', [], "column='text', but row 0 has the columns txt; did you mean 'txt'\\?"),
        ("texts.jsonl", '{"text": 3}\n', [], "column='text' of row 0 holds int, not a text"),
        ("texts.jsonl", "", [], "the dataset 'texts.jsonl' is empty"),
        ("texts.jsonl", "{", [], "the dataset 'texts.jsonl' cannot be read"),
        ("texts.pdf", "bet", ["--texts", "texts.pdf"], "texts.pdf has to end with one of .jsonl, "),
        ("texts.txt", "bet", ["--texts", "text.txt"], "text.txt does not exist; did you mean 'texts.txt'\\?"),
    ],
)
def test_texts(run, no_model, name, content, given, message):
    Path(name).write_text(content)
    check_line(*run("sae", "train", *changed(TEXTS, *given)), message)


def test_episodes_of_no_games(run, no_model):
    from spiral_trl.records import episodes_to_dataset

    episodes_to_dataset([]).save_to_disk("none")
    check_line(
        *run("sae", "train", *changed(RIGHT["train"], "--episodes", "none")), "none holds no episodes: it is empty"
    )


@pytest.mark.parametrize("step", ["relate", "report", "ablate", "compare"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("no shard", "run/codes holds no codes yet: no shard was finished"),
        ("cut short", "shard run/codes/shards/00000 is corrupt: layer_01.value.npy cannot be read"),
        ("no record", "shard run/codes/shards/00000 is corrupt: there is no shard.json"),
        ("no JSON", "run/codes/store.json cannot be read"),
        ("another version", "run/codes was written by another version \\(99"),
        ("empty", "run/codes holds no codes: there is no store.json"),
    ],
)
def test_codes_that_cannot_be_read(run, no_model, step, harm, message):
    codes = Path("run/codes")
    shard = codes / "shards" / "00000"
    if harm == "no shard":
        shutil.rmtree(shard)
    elif harm == "cut short":
        path = shard / "layer_01.value.npy"
        path.write_bytes(path.read_bytes()[:-5])
    elif harm == "no record":
        (shard / "shard.json").unlink()
    elif harm == "no JSON":
        (codes / "store.json").write_text("{")
    elif harm == "another version":
        (codes / "store.json").write_text(json.dumps(json.loads((codes / "store.json").read_text()) | {"version": 99}))
    else:
        shutil.rmtree(codes)
        codes.mkdir()
    check_line(*run("sae", step, *RIGHT[step]), message)


@pytest.mark.parametrize("step", RIGHT)
def test_without_the_extra(run, no_model, monkeypatch, step):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    message = 'sae-lens, numba, scikit-network not installed: pip install "spiral-trl\\[sae\\]"'
    check_line(*run("sae", step, *RIGHT[step]), message)


@pytest.mark.parametrize("step", ["train", "collect", "report", "ablate"])
def test_the_check_of_loading_sees_it(run, no_model, step):
    with pytest.raises(AssertionError, match="a model was loaded"):
        run("sae", step, *RIGHT[step])


# ----------------------------------------------------------------------------------- what only the model's words tell


def test_too_little_for_an_ablation(run):
    check_line(
        *run("sae", "ablate", *RIGHT["ablate"], "--quiet"),
        "no feature of layer 0 fires on 20 tokens: read more",
    )


def test_dictionaries_of_another_model(run):
    # Equal in width and depth, but of another kind
    path = Path("saes/layer_00/cfg.json")
    said = json.loads(path.read_text())
    said["metadata"]["model_type"] = "gpt2"
    path.write_text(json.dumps(said))
    message = "saes/layer_00 was trained on another model: its model_type is gpt2, this model's qwen3"
    check_line(*run("sae", "collect", *RIGHT["collect"]), message)
    said["metadata"] |= {"model_type": "qwen3", "num_hidden_layers": 12}
    path.write_text(json.dumps(said))
    check_line(*run("sae", "collect", *RIGHT["collect"]), "its num_hidden_layers is 12, this model's 2")


def test_a_folder_that_holds_codes_of_other_settings(run):
    assert run("sae", "collect", *RIGHT["collect"])[0] == 0
    shutil.copytree("out", "kept")
    line = run("sae", "collect", *changed(RIGHT["collect"], "--dictionaries", "others"), "--quiet")
    check_line(*line, "out was begun with the dictionaries .*: choose another folder")
    assert (Path("out/store.json")).read_bytes() == (Path("kept/store.json")).read_bytes()
