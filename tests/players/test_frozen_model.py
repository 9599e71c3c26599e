import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from spiral_trl.games import make_game, tabulate
from spiral_trl.players import frozen_model
from spiral_trl.players.frozen_model import ModelSettings, check_model, load_model_player, model_name
from spiral_trl.training.tiny import save_tiny_model


GAME = "kuhn_poker(observation=compact)"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of the untrained embedded model. Not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_model(folder, 0, 32, 1)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copied")


def refused(path, call=check_model):
    with pytest.raises(ValueError) as error:
        call(str(path))
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_folder_plays_with_its_weights_and_settings(saved):
    settings = ModelSettings(max_new_tokens=5, temperature=0.5, top_p=0.9, top_k=3, max_rows=7, device="cpu")
    player = load_model_player(str(saved), settings)
    assert (player.name, player.max_new_tokens, player.temperature) == ("tiny", 5, 0.5)
    assert (player.top_p, player.top_k, player.max_rows, player.model.training) == (0.9, 3, 7, False)
    weights = load_file(saved / "model.safetensors")
    assert weights and all(torch.equal(player.model.state_dict()[name], weight) for name, weight in weights.items())
    turns = tabulate(GAME).turns
    replies = player.reply(turns)
    assert len(replies) == len(turns) and all(len(reply.completion_ids) <= 5 for reply in replies)
    assert load_model_player(str(saved), settings).reply(turns) == replies


def test_a_reply_leaves_room_for_the_prompt_in_a_small_model(saved):
    player = load_model_player(str(saved), ModelSettings(max_new_tokens=100_000))
    assert player.max_new_tokens == player.model.config.max_position_embeddings // 2
    game = make_game(GAME)
    game.reset(0)
    assert player.reply(game.turns())


def test_weights_can_be_loaded_in_another_type(saved):
    assert load_model_player(str(saved), ModelSettings(dtype="bfloat16")).model.dtype == torch.bfloat16
    assert load_model_player(str(saved)).model.dtype == torch.float32


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
@pytest.mark.parametrize("tokenizer", [True, False])
def test_an_adapter_plays_as_it_was_trained(saved, tmp_path, modules_to_save, tokenizer):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(saved)
    plain = base(torch.arange(5)[None]).logits
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        modules_to_save=modules_to_save,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    if tokenizer:
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(saved / file, tmp_path / "adapter")
    player = load_model_player(str(tmp_path / "adapter"))
    assert player.name == "adapter"
    logits = player.model(torch.arange(5)[None]).logits
    torch.testing.assert_close(logits, model(torch.arange(5)[None]).logits)
    assert not torch.allclose(logits, plain, atol=1e-3)
    assert len(player.reply(tabulate(GAME).turns)) == 12


def test_an_adapter_needs_peft_and_its_base(saved, tmp_path, monkeypatch):
    config = {"base_model_name_or_path": str(saved), "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "holds no weights" in refused(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    check_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": f"{saved}y"}))
    assert "holds an adapter of another model: The model folder" in refused(tmp_path)
    assert refused(tmp_path).endswith("tinyy does not exist; did you mean 'tiny'?")
    for broken in ("{", "[]", "{}", '{"base_model_name_or_path": null}'):
        (tmp_path / "adapter_config.json").write_text(broken)
        assert "names no base_model_name_or_path" in refused(tmp_path)
    monkeypatch.setattr(frozen_model, "find_spec", lambda name: None)
    assert "peft is not installed; install spiral-trl[peft]" in refused(tmp_path)


def test_what_is_no_model_is_refused_before_anything_is_loaded(saved, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    check_model(str(saved))
    check_model("Qwen/Qwen3-0.6B")
    assert refused("./no/such/model") == "The model folder ./no/such/model does not exist."
    assert refused(saved.parent / "tny").endswith("tny does not exist; did you mean 'tiny'?")
    assert refused(saved / "config.json").endswith("config.json is a file; name the folder of a model.")
    assert refused("Qwen/Qwen3 0.6B").startswith("'Qwen/Qwen3 0.6B' is no folder and no id on the Hub: ")
    for folder in ("run/checkpoint-9", "run/checkpoint-10"):
        shutil.copytree(copied, tmp_path / folder)
    assert refused(tmp_path / "run").endswith(f"did you mean {tmp_path / 'run' / 'checkpoint-10'}?")
    for name, reason in [("tokenizer", "no tokenizer"), ("model", "no weights"), ("config", "no model: there is no")]:
        for file in list(copied.glob(f"{name}*")):
            file.unlink()
        assert f"holds {reason}" in refused(copied, load_model_player)


def test_a_model_that_cannot_be_loaded_is_one_line(copied):
    weights = load_file(copied / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "lm_head.weight"}, copied / "model.safetensors", {"format": "pt"}
    )
    assert refused(copied, load_model_player).endswith("copied lacks 1 weights, such as lm_head.weight.")
    (copied / "model.safetensors").write_bytes(b"garbage" * 100)
    assert "copied cannot be loaded: Error while deserializing header" in refused(copied, load_model_player)
    (copied / "config.json").write_text('{"model_type": "wonder"}')
    assert "copied cannot be loaded: The checkpoint you are trying to load has model type" in refused(
        copied, load_model_player
    )
    (copied / "config.json").write_text("{")
    assert "copied cannot be loaded:" in refused(copied, load_model_player)


def test_a_models_own_code_does_not_run_unasked(copied):
    (copied / "own.py").write_text("raise SystemExit('the code ran')")
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (copied / "config.json").write_text(json.dumps(config))
    assert "trust_remote_code=True" in refused(copied, load_model_player)


def test_a_missing_chat_template_is_named_with_the_fix(copied):
    (copied / "chat_template.jinja").unlink()
    assert "has no chat template" in refused(copied, load_model_player)


def test_an_id_that_is_not_stored_here_is_one_line_when_offline():
    assert refused("nobody/nothing", load_model_player).startswith("The model nobody/nothing cannot be loaded: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(saved):
    with pytest.raises(ValueError, match="device=cuda:1, but no GPU can be used here"):
        load_model_player(str(saved), ModelSettings(device="cuda:1"))


def test_another_prompt_template_is_passed_on(saved, monkeypatch):
    from spiral_trl.players import language_model

    given = {}
    monkeypatch.setattr(language_model, "LanguageModelPlayer", lambda *args, **kwargs: given.update(kwargs))
    load_model_player(str(saved))
    assert given["prompt_template"] == "chat"
    load_model_player(str(saved), ModelSettings(prompt_template="qwen3_base", chat_template_kwargs={"x": 1}))
    assert given["prompt_template"] == "qwen3_base" and given["chat_template_kwargs"] == {"x": 1}


def test_a_folder_is_called_by_the_last_part_of_its_path(saved, monkeypatch):
    assert model_name(str(saved)) == model_name(f"{saved}/") == "tiny"
    monkeypatch.chdir(saved)
    assert model_name(".") == "tiny"
    assert model_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(max_new_tokens=0), "max_new_tokens of a model must be at least 1, not 0"),
        (dict(max_rows=0), "max_rows of a model must be at least 1, not 0"),
        (dict(top_k=-1), "top_k of a model must be at least 0, not -1"),
        (dict(temperature=0.0), "temperature of a model must be above 0, not 0.0; top_k=1 is greedy"),
        (dict(temperature=float("nan")), "temperature of a model must be above 0, not nan"),
        (dict(top_p=1.5), "top_p of a model must be above 0 and at most 1, not 1.5"),
        (dict(dtype="float8"), "dtype of a model must be one of .*, not 'float8'; did you mean 'float32'"),
        (dict(device="gpu"), "device of a model must be cpu, mps, cuda or such as cuda:1, not 'gpu'"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ModelSettings(**values)
