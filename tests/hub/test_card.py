"""The card has the figures of `metrics.json`, metadata the Hub understands, and nothing of the machine."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from spiral_trl.hub import redact
from spiral_trl.hub.card import write_model_card
from spiral_trl.hub.report import write_report
from spiral_trl.hub.templating import code_block, markdown


def render(metrics, tmp_path):
    write_model_card(metrics, tmp_path / "README.md")
    return ModelCard.load(tmp_path / "README.md")


def test_metadata(metrics, tmp_path):
    data = render(metrics, tmp_path).data
    assert data.tags == ["trl", "spiral-trl", "self-play", "kuhn_poker", "arxiv:2506.24119"]
    assert data.library_name == "transformers"
    assert data.base_model is None
    measured = {(r.dataset_config, r.metric_type): r.metric_value for r in data.eval_results}
    assert measured[("self-play", "exploitability")] == 0.01234
    assert measured[("self-play", "illegal_move_rate")] == 0.00007
    assert measured[("against cfr as player 1", "win_rate")] == 0.52
    assert len(measured) == 6
    names = {r.metric_name for r in data.eval_results}
    assert "exploitability (exact, chips)" in names


@pytest.mark.parametrize(
    ("base", "embedded", "shown"),
    [
        ("Qwen/Qwen3-4B-Base", False, "Qwen/Qwen3-4B-Base"),
        ("Qwen/Qwen3-4B-Base", True, None),
        ("/home/jane/models/mine", False, None),
        ("./mine", False, None),
        ("../models/mine", False, None),
        ("no such--name..", False, None),
        (None, False, None),
    ],
)
def test_base_model_only_where_it_is_an_id(metrics, tmp_path, base, embedded, shown):
    metrics["model"].update(base_model=base, embedded=embedded)
    assert render(metrics, tmp_path).data.base_model == shown


def test_a_local_folder_is_no_base_model(metrics, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "kuhn").mkdir(parents=True)
    metrics["model"].update(base_model="outputs/kuhn", embedded=False)
    assert render(metrics, tmp_path).data.base_model is None


def test_figures_and_settings_come_from_the_metrics(metrics, tmp_path):
    text = render(metrics, tmp_path).text
    for part in (
        "| Exploitability after self-play | 0.0123 | chips, exact |",
        "| Exploitability after plain self-play | 0.317 | chips, exact |",
        "| cfr | player 1 | 1,000 | 52.0% \\[49.0, 55.0\\] | 0% | 0.05 \\[−0.03, 0.13\\] |",
        "| 0 | Q, after check bet | call | 0.41 | 0.55 | 0.88 | 0.33–0.67 |",
        "| Seed | 0 |", "Each of two players antes", "not a pretrained language model", "exact",
        "```bash\naccelerate launch recipes/kuhn.py --config recipes/kuhn_tiny.yaml\n```",
        "```yaml\nlearning_rate: 0.004\nmax_steps: 3500\n", "2506.24119", "TRL: Transformers Reinforcement Learning",
        "It does not say how much the policy wins",
    ):  # fmt: skip
        assert part in text, part
    metrics["exploitability"]["final"] = 0.777
    assert "0.777" in render(metrics, tmp_path).text


def test_pictures_lie_beside_the_card(metrics, tmp_path):
    text = render(metrics, tmp_path).text
    linked = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(linked) == 7
    for name in linked:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert {f"figures/{path.name}" for path in (tmp_path / "figures").iterdir()} == set(linked)
    write_model_card(metrics, tmp_path / "README.md", figures_dir=tmp_path / "images" / "card")
    assert "](images/card/exploitability.png)" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_tables_are_well_formed(metrics, tmp_path):
    rows = [line for line in render(metrics, tmp_path).text.splitlines() if line.startswith("|")]
    header = None
    for line, before in zip(rows, ["", *rows], strict=False):
        cells = len(re.findall(r"(?<!\\)\|", line))
        if set(line) <= {"|", "-"}:
            header = cells
            assert len(re.findall(r"(?<!\\)\|", before)) == header, before
    text = render(metrics, tmp_path).text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
        assert set(block.splitlines()[1]) <= {"|", "-"}


def test_missing_figures(metrics, tmp_path):
    card = render({"schema": 1, "game": "openspiel:goofspiel(num_cards=4)", "model": {"name": "m"}}, tmp_path)
    assert "None" not in card.text
    assert "not measured" in card.text and "goofspiel as OpenSpiel plays it" in card.text
    assert card.data.eval_results is None
    assert "goofspiel" in card.data.tags
    assert "Strategy" not in card.text and "![" not in card.text
    metrics["exploitability"].update(method="lower bound", plain=None, plain_given_legal=None)
    metrics["curves"]["plain"] = None
    for row in metrics["strategy"]:
        row.update(plain=None, equilibrium=None)
    text = render(metrics, tmp_path).text
    assert "| ≥ 0.0123 | chips, lower bound |" in text and "Equilibria" not in text and "plain self-play" not in text


def test_hostile_names_do_not_leave_their_place(metrics, tmp_path):
    metrics["model"]["name"] = "a | b\n# c <script>x</script> `d` [e](javascript:f)"
    metrics["command"] = "run ```\n# out"
    text = render(metrics, tmp_path).text
    assert "<script>" not in text
    assert "\n# c" not in text
    assert "````bash\nrun ```\n# out\n````" in text
    assert markdown("a|b\nc") == "a\\|b c"
    assert code_block("x") == "```\nx\n```"


def test_nothing_of_the_machine_is_published(metrics, episodes, tmp_path, monkeypatch):
    monkeypatch.setattr(redact, "local_names", lambda: ("kestrel-07", "janedoe"))
    monkeypatch.setattr("spiral_trl.hub.summary.local_names", lambda: ("kestrel-07", "janedoe"))
    token, home = "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ", "/home/janedoe"
    metrics["command"] = f"HF_TOKEN={token} python {home}/work/kuhn.py --hub_token {token} --host kestrel-07"
    metrics["recipe"] = f"{home}/work/kuhn.yaml"
    metrics["model"].update(name=f"{home}/models/tiny", base_model=f"{home}/models/tiny", embedded=False)
    metrics["machine"].update(processor="x86_64 on kestrel-07", hostname="merlin-09", user="janedoe")
    metrics["versions"]["torch"] = f"2.13.0 from {home}/src/torch at merlin-09"
    metrics["training"].update(
        output_dir=f"{home}/out/run", hub_token="secret-value", logging_dir="C:\\Users\\janedoe\\l"
    )
    metrics["results"][0]["opponent"] = f"{home}/snapshots/step-100"
    metrics["curves"]["self_play"][0]["return"] = {f"{home}/role": 0.1}
    step = episodes[0].steps[0]
    step = replace(step, reply=replace(step.reply, text=f"I read {home}/notes.txt and {token}"))
    episodes[0] = replace(episodes[0], steps=(step,), players=(f"model in {home}/out", "kestrel-07 bot"))
    write_model_card(metrics, tmp_path / "README.md")
    write_report(metrics, episodes, tmp_path / "report.html")
    for name in ("README.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        for private in (token, "hf_", home, "janedoe", "kestrel-07", "merlin-09", "secret-value", "/home/"):
            assert private not in text, (name, private)
        assert "kuhn.py" in text and "kuhn.yaml" in text
    for picture in (tmp_path / "figures").iterdir():
        assert b"janedoe" not in picture.read_bytes()
