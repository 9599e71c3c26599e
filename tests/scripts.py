"""Scripts and other processes, as tests run them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent


def load_script(path):
    """A recipe or a benchmark, which are in no package, as a module; `path` starts at the root."""
    specification = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run_python(*arguments, cwd=None, stdout=subprocess.PIPE, timeout=300, **environment):
    """Python in a process of its own that finds what this one finds; answers the finished process with its output."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
    )


def printed_by(code, **environment):
    """What Python code prints in a process of its own; an error there is one here."""
    done = run_python("-c", code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
