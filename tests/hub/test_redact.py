"""Nothing of the machine stays in what is published, and ordinary text stays as it was."""

from pathlib import Path

import pytest

from spiral_trl.hub import redact as module
from spiral_trl.hub.redact import redact, redact_tree


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python /home/jane.doe/spiral/kuhn.py", "python <path>/kuhn.py"),
        ("--output_dir=/scratch/jane/run1 --x", "--output_dir=<path>/run1 --x"),
        ("/home/jane", "<path>"),
        ("/home/jane/", "<path>"),
        ("/root/a/b.yaml", "<path>/b.yaml"),
        ("'/home/jane doe/My Runs/a b.py' next", "'<path>/a b.py' next"),
        (r"/home/jane\ doe/a.py", "<path>/a.py"),
        (r"C:\Users\jane\a.yaml", "<path>/a.yaml"),
        (r"\\server\share\a.yaml", "<path>/a.yaml"),
        ("~jane/a.yaml", "<path>/a.yaml"),
        ("--hub_token hf_abcdefghijkl", "--hub_token <token>"),
        ("--hub_token=short", "--hub_token=<token>"),
        ("WANDB_API_KEY=0123 python", "WANDB_API_KEY=<token> python"),
        ("said hf_AbCdEfGhIjKl twice", "said <token> twice"),
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: <token>"),
        ("http://gpu-17:8000/v1", "<address>"),
        ("https://jane:pw@huggingface.co/x", "<address>"),
        ("--main_process_ip 10.0.0.3", "--main_process_ip <address>"),
        ("jane@node7.cluster.org", "<address>"),
        ("on gpu-17.", "on <name>."),
    ],
)
def test_takes_out_what_is_private(text, expected):
    assert redact(text, names=("gpu-17",)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "check/bet/fold", "a <think>x</think> /no_think", "1/2 and/or a / b", "recipes/kuhn_tiny.yaml",
        "board\n/x/\\o/",
        "see https://arxiv.org/abs/2506.24119", "max_new_tokens=4 eos_token=<e>", "the secret is a token of trust",
        "| x | /\\ / / \\", "// comment", "0|J|check bet", "trl 1.16.0", "the --token --verbose flags", "10.5 chips",
    ],
)  # fmt: skip
def test_leaves_ordinary_text_alone(text):
    assert redact(text, names=("gpu-17",)) == text


def test_paths_below_the_working_directory_become_relative(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert redact(f"{tmp_path}/recipes/kuhn.yaml", names=()) == "recipes/kuhn.yaml"


def test_a_home_folder_as_working_directory_is_not_shown(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "jane"))
    monkeypatch.chdir(tmp_path)
    assert "jane" not in redact(f"{tmp_path}/jane/out/kuhn.yaml", names=())


def test_names_of_this_machine_go_by_default(monkeypatch):
    monkeypatch.setattr(module, "local_names", lambda: ("kestrel", "jane"))
    assert redact("kestrel, jane and janet") == "<name>, <name> and janet"


def test_local_names_are_host_and_user_without_common_ones(monkeypatch):
    monkeypatch.setattr(module.socket, "gethostname", lambda: "kestrel.lab")
    monkeypatch.setattr(module.getpass, "getuser", lambda: "root")
    monkeypatch.setenv("HOME", "/home/jane")
    module.local_names.cache_clear()
    try:
        assert module.local_names() == ("kestrel.lab", "kestrel", "jane")
    finally:
        module.local_names.cache_clear()


def test_tree_is_redacted_throughout_and_left_as_it_was():
    tree = {"hub_token": "plain", "eos_token": "<e>", "/home/jane/x": [1, ("/home/jane/k", None)], "seed": 0}
    before = repr(tree)
    assert redact_tree(tree, names=()) == {
        "hub_token": "<token>",
        "eos_token": "<e>",
        "<path>/x": [1, ["<path>/k", None]],
        "seed": 0,
    }
    assert repr(tree) == before
