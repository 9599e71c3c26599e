"""Self-play on several games at once, by one model: tic-tac-toe, Kuhn poker and simple negotiation.

    accelerate launch recipes/multi_game.py                                                 # the embedded model, CPU
    accelerate launch recipes/multi_game.py --config recipes/multi_game_qwen3_4b.yaml      # the paper's run

Every field of SelfPlayConfig, TRL's ModelConfig and RunArguments may stand in the YAML or be given as a flag.
"""

import sys
from pathlib import Path

from spiral_trl.cli import run_recipe, self_play_recipe


main = self_play_recipe(Path(__file__).with_name("multi_game_tiny.yaml"))

if __name__ == "__main__":
    run_recipe(main, sys.argv[1:])
