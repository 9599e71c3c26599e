"""The habits of the house: which way imports point, what stays light, and what no tracked file may hold."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from scripts import ROOT, printed_by


PACKAGE = ROOT / "spiral_trl"

# Top to bottom: a module imports only from those above it, or from its own folder.
HOUSE = [
    "version",
    "errors",
    "names",
    "records",
    "stats",
    "ratings",
    "games",
    "prefix_sharing",
    "players",
    "rollout",
    "experts",
    "advantages",
    "evaluation",
    "hub",
    "sae",
    "training",
    "cli",
    "commands",
    "__init__",
    "__main__",
]

MODULES = sorted(PACKAGE.rglob("*.py"))
PYTHON_FILES = [*MODULES, *sorted((ROOT / "recipes").rglob("*.py"))]
YAML_FILES = sorted(path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".yaml", ".yml"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def place(module: str) -> str:
    """The place in the house of a dotted module name: `games` for `spiral_trl.games.base`."""
    return (module.split(".") + ["__init__"])[1]


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of each import of the package's own modules in `source`, whatever block it stands in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import records` and `from spiral_trl import records` name modules of the top level.
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem == "spiral_trl" else [stem]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "spiral_trl":
                yield node.lineno, name


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports that point down the list, or at a module that is in no list."""
    own = place(module)
    found = []
    for line, name in imported(source, module, is_package):
        target = place(name)
        if target not in HOUSE:
            # A name that the top level exports, such as `from spiral_trl import SelfPlayConfig`.
            target = "__init__"
        if target != own and HOUSE.index(target) > HOUSE.index(own):
            found.append(f"{module}:{line} imports {name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_point_up_the_list(path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert place(module) in HOUSE, f"{module} has no place in the house: add it to HOUSE and to CONTRIBUTING.md"
    assert violations(path.read_text(encoding="utf-8"), module, is_package) == []


@pytest.mark.parametrize(
    ("source", "module", "is_package", "forbidden"),
    [
        ("from ..records import Turn", "spiral_trl.games.base", False, False),
        ("from .chance import Chance", "spiral_trl.games.base", False, False),
        ("from .chance import Chance", "spiral_trl.games", True, False),
        ("from ..rollout import play", "spiral_trl.games.base", False, True),
        ("from ..rollout import play", "spiral_trl.games", True, True),
        ("from .. import rollout", "spiral_trl.games.base", False, True),
        ("def f():\n    from ..training.tiny import warm_start", "spiral_trl.hub.card", False, True),
        ("import spiral_trl.training.tiny", "spiral_trl.records", False, True),
        ("from spiral_trl import SelfPlayConfig", "spiral_trl.records", False, True),
        ("from spiral_trl.records import Turn", "spiral_trl.training.tiny", False, False),
        ("from .training import SelfPlayTrainer", "spiral_trl", True, False),
        ("from .cli import main", "spiral_trl.training", False, True),
        ("import torch\nfrom torch import nn", "spiral_trl.records", False, False),
    ],
)
def test_the_check_of_imports_tells_up_from_down(source, module, is_package, forbidden):
    assert bool(violations(source, module, is_package)) is forbidden


def test_the_house_is_the_one_that_contributors_read():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.search(r"^`version`.*?`recipes/`$", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    names = [name.rstrip("/") for name in re.findall(r"`([^`]+)`", listed.group())]
    assert names == [*HOUSE[: HOUSE.index("__init__")], "recipes"]


HEAVY = ("torch", "transformers", "datasets", "trl", "accelerate", "matplotlib")


@pytest.mark.parametrize("module", ["records", "stats", "ratings", "games", "players.bots", "advantages", "errors"])
def test_what_needs_no_model_imports_no_heavy_library(module):
    code = f"import sys, spiral_trl.{module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert printed_by(code) == "[]"


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# They plant made-up paths, to show that none gets through
PLANTED = {"tests/hub/test_card.py", "tests/hub/test_redact.py"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users|mnt|scratch)/[\w.]")


def test_no_tracked_file_names_a_path_of_a_machine():
    found = []
    for path in tracked():
        if relative(path) in PLANTED:
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{relative(path)}:{n}" for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert found == []


def test_the_check_of_paths_sees_one():
    slash = "/"
    assert MACHINE_PATH.search(f"saved in '{slash}home/someone/run'")
    assert MACHINE_PATH.search(f"{slash}tmp/x")
    assert not MACHINE_PATH.search(f"docs{slash}work/notes and https:{slash}{slash}example.org{slash}home")


@pytest.mark.parametrize("path", PYTHON_FILES, ids=relative)
def test_every_file_says_what_it_is(path):
    source = path.read_text(encoding="utf-8")
    if source.strip():
        assert ast.get_docstring(ast.parse(source)), "the file does not open with a docstring"


@pytest.mark.parametrize("path", YAML_FILES, ids=relative)
def test_every_recipe_file_is_a_yaml_mapping_that_opens_with_its_purpose(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#"), "the file does not open with a comment on what it serves"
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize(
    ("name", "processes", "precision"),
    [("cpu", 1, "no"), ("one_gpu", 1, "bf16"), ("eight_gpus_zero2", 8, "bf16")],
)
def test_accelerate_reads_its_configurations(name, processes, precision):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "recipes" / "accelerate" / f"{name}.yaml"))
    assert (config.num_processes, config.mixed_precision) == (processes, precision)
    assert config.use_cpu is (name == "cpu")
    assert config.deepspeed_config.get("zero_stage") == (2 if "zero2" in name else None)


def test_the_version_is_single_sourced():
    from spiral_trl.version import __version__

    assert "version = attr: spiral_trl.version.__version__" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__


def test_every_dependency_is_pinned_within_its_range():
    from configparser import ConfigParser

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    needed = [Requirement(line) for text in lines for line in text.split("\n") if line.strip()]
    assert len(needed) > 15
    for requirement in needed:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None and requirement.specifier.contains(pin), f"{requirement}: pinned at {pin}"
