"""Loads an OpenSpiel game and plays a little of it, in a process of its own: some parameter values end the process.

Run as a script by [`~spiral_trl.games.openspiel_names.load`], with the name and the parameters as JSON. It exits with 0
where the game can be played, and else prints one line that says why not.
"""

import json
import random
import resource
import sys


# Values that ask for more are mistakes, and must not take the machine's memory before they fail.
MAX_MEMORY = 2 * 2**30
PLAYOUTS = 3
MAX_MOVES = 60


def try_game(name: str, parameters: dict) -> None:
    """Raises whatever OpenSpiel raises while the game is loaded and played."""
    import pyspiel

    game = pyspiel.load_game(name, parameters)
    players = range(game.num_players())
    game.min_utility(), game.max_utility(), game.num_distinct_actions()
    for seed in range(PLAYOUTS):
        rng = random.Random(seed)
        state = game.new_initial_state()
        for _ in range(MAX_MOVES):
            if state.is_terminal():
                break
            if state.is_chance_node():
                outcomes, weights = zip(*state.chance_outcomes(), strict=True)
                state.apply_action(rng.choices(outcomes, weights)[0])
                continue
            legal = [state.legal_actions(player) for player in players]
            if not any(legal):
                raise ValueError("a player has no legal action")
            if state.is_simultaneous_node():
                state.apply_actions([rng.choice(actions or [0]) for actions in legal])
            else:
                state.apply_action(rng.choice(state.legal_actions()))
        state.returns()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    try:
        try_game(*json.loads(sys.argv[1]))
    except Exception as error:
        print(" ".join(str(error).split()) or type(error).__name__)
        sys.exit(1)
