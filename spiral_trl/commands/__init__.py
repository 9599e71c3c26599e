"""The commands of `spiral-trl`: one module each, with `HELP`, `EXAMPLES`, `add_arguments(parser)` and `run(options)`.

Modules are imported when their command is called, or its help is asked for, so that `spiral-trl --help` is quick.
"""

# Name of each command (a module here), and what it does
COMMANDS = {
    "games": "list the games, or show one: its rules as a player reads them",
    "experts": "collect decisions of solvers, or of winners of a model's self-play, as a dataset for SFT",
}
