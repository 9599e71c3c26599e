"""What docs/sae.md shows: its commands and code run as they stand there, and its lists and figures are those of the code."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from scripts import ROOT

from spiral_trl.commands.main import main
from spiral_trl.commands.sae import STEPS
from spiral_trl.sae import presence
from spiral_trl.sae.gate import GateLimits
from spiral_trl.sae.labels import LABELS, LabelSettings
from spiral_trl.sae.relations import MEASURES


TEXT = (ROOT / "docs" / "sae.md").read_text(encoding="utf-8")
GAME = "kuhn_poker(observation=compact)"
# What makes a step quick; options that are given twice count as the last says
QUICK = {
    "train": "--tokens 3000 --features 48 --active 4",
    "ablate": "--num-features 2",
    "ablate --game": "--pairs 2 --random-sets 1",
}


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str = TEXT) -> list[list[str]]:
    """Every `spiral-trl sae` of a text, as a shell takes it apart."""
    lines = [
        line for block in blocks("bash", text) for line in block.splitlines() if line.startswith("spiral-trl sae")
    ]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def local(command: list[str]) -> bool:
    """Whether it needs no download."""
    return not any(part.startswith(("openai-community/", "release:")) for part in command)


def call(*argv: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    assert ended.value.code in (0, None), argv


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The folder that a `make kuhn` leaves, as far as the commands read it: a model, the one before, and games."""
    from spiral_trl.sae.sources import play_to_read
    from spiral_trl.training.tiny import save_tiny_model

    folder = tmp_path_factory.mktemp("docs")
    save_tiny_model(folder / "outputs" / "kuhn", seed=0)
    save_tiny_model(folder / "outputs" / "kuhn" / "warm_start", seed=0)
    model = str(folder / "outputs" / "kuhn")
    play_to_read(model, [GAME], 60, 0, folder / "outputs" / "kuhn" / "episodes", max_new_tokens=3)
    return folder


def test_every_step_is_shown_and_every_command_is_understood(capsys):
    """Those that download are taken apart here, and not run."""
    import argparse

    from spiral_trl.commands import sae

    parser = argparse.ArgumentParser(exit_on_error=False)
    sae.add_arguments(parser)
    shown = commands()
    assert {command[1] for command in shown} == set(STEPS)
    assert any(not local(command) for command in shown)
    for command in shown:
        parser.parse_args(command[1:])
    with pytest.raises(SystemExit):
        parser.parse_args([*shown[0][1:], "--no-such-option"])


def test_the_commands_and_the_code_run_in_the_order_of_the_page(run_folder, monkeypatch, capsys):
    monkeypatch.chdir(run_folder)
    for command in filter(local, commands()):
        step = "ablate --game" if "--game" in command else command[1]
        call(*command, "--quiet", *QUICK.get(step, "").split())
    for path in (
        "features/report.html",
        "features/community.html",
        "change/comparison.json",
        "features/ablation.json",
    ):
        assert Path("outputs", path).is_file(), path
    printed = capsys.readouterr().out
    assert "Without 2 given features the model's mean return" in printed
    (code,) = blocks("python")
    exec(code, {})
    best, flow = capsys.readouterr().out.splitlines()
    upstream, downstream, necessity = best.split()
    assert 0 <= int(upstream) < 48 and 0 <= int(downstream) < 48 and 0 < float(necessity) <= 1
    share, labels = flow.split(" ", 1)
    assert 0 <= float(share) <= 1 and labels.count("'") == 2 * 48


def rows(first_column: str) -> dict[str, str]:
    """The table whose first column has this heading: first cell to second."""
    table = re.search(rf"^\| {first_column} \|.*?\n\n", TEXT, re.MULTILINE | re.DOTALL).group()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    return {row[0].strip("`"): row[1].strip("`") for row in cells}


def test_the_lists_are_those_of_the_code():
    assert tuple(rows("measure")) == MEASURES
    assert tuple(rows("label")) == LABELS
    for verdict in presence.VERDICTS:
        assert f"`{verdict}`" in TEXT


def test_the_defaults_are_those_of_the_code():
    defaults = {field.name: str(field.default) for field in fields(LabelSettings)}
    assert rows("setting") == defaults


def test_the_limits_of_the_gate_are_those_of_the_code():
    words = " ".join(re.search(r"\*\*Gate\.\*\*.*?(?=\n2\.)", TEXT, re.DOTALL).group().split())
    limits = GateLimits()
    assert limits.unexplained_variance == 0.25 and "more than a quarter" in words
    for part in (
        f"(and more than {limits.unexplained_floor})",
        f"a factor above {limits.l0}",
        f"dead share grows by more than {limits.dead}",
        f"recovered falls by more than {limits.ce_recovered}",
    ):
        assert part in words, part


def test_the_commands_of_the_readme_are_among_those_that_run():
    shown = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown
    for command in shown:
        assert local(command) and command in commands(), command
