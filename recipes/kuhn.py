"""Self-play on Kuhn poker.

    accelerate launch recipes/kuhn.py                                          # the embedded model, CPU, minutes
    accelerate launch recipes/kuhn.py --config recipes/kuhn_qwen3_4b.yaml      # the paper's run

Every field of SelfPlayConfig, TRL's ModelConfig and RunArguments may stand in the YAML or be given as a flag.
"""

import sys
from pathlib import Path

from spiral_trl.cli import run_recipe, self_play_recipe


main = self_play_recipe(Path(__file__).with_name("kuhn_tiny.yaml"))

if __name__ == "__main__":
    run_recipe(main, sys.argv[1:])
