"""The commands of `spiral-trl`: one module each, with `HELP`, `EXAMPLES`, `add_arguments(parser)` and `run(options)`.

Modules are imported when their command is called, or its help is asked for, so that `spiral-trl --help` is quick.
"""

# Name of each command (a module here), and what it does
COMMANDS = {
    "games": "list the games, or show one: its rules as a player reads them",
    "experts": "collect decisions of solvers, or of winners of a model's self-play, as a dataset for SFT",
    "play": "play a game at the terminal, or let players play and print what they did",
    "evaluate": "measure one player: results by seat, illegal replies, exploitability",
    "arena": "a round robin of players: pay-offs, ratings, a picture",
    "sae": "features of sparse autoencoders: across layers, in a page, before and after training",
    "patterns": "reasoning patterns in games and math: found by a judge, counted over training",
}
