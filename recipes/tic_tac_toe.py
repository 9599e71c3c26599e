"""Self-play on tic-tac-toe.

    accelerate launch recipes/tic_tac_toe.py                                                 # the embedded model, CPU
    accelerate launch recipes/tic_tac_toe.py --config recipes/tic_tac_toe_qwen3_4b.yaml      # the paper's run

Every field of SelfPlayConfig, TRL's ModelConfig and RunArguments may stand in the YAML or be given as a flag.
"""

import sys
from pathlib import Path

from spiral_trl.cli import run_recipe, self_play_recipe


main = self_play_recipe(Path(__file__).with_name("tic_tac_toe_tiny.yaml"))

if __name__ == "__main__":
    run_recipe(main, sys.argv[1:])
