"""Self-play on simple negotiation: trading resources whose value each player alone knows.

    accelerate launch recipes/negotiation.py                                                 # the embedded model, CPU
    accelerate launch recipes/negotiation.py --config recipes/negotiation_qwen3_4b.yaml      # the paper's run

Every field of SelfPlayConfig, TRL's ModelConfig and RunArguments may stand in the YAML or be given as a flag.
"""

import sys
from pathlib import Path

from spiral_trl.cli import run_recipe, self_play_recipe


main = self_play_recipe(Path(__file__).with_name("negotiation_tiny.yaml"))

if __name__ == "__main__":
    run_recipe(main, sys.argv[1:])
