"""The steps of `spiral-trl sae`: one module each, with `HELP`, `EXAMPLES`, `add_arguments(parser)` and `run(options)`."""
