"""Makes `evaluation_fakes` importable: tests are imported without their folder on the path."""

import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parent.parent / "evaluation"))
