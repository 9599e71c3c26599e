"""Expert play as data for supervised fine-tuning: solvers that give their reasons, and winners of a model's self-play."""
