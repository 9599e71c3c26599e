"""Policies on any table, for the tests of what they are worth."""

import numpy as np

from spiral_trl.evaluation.policy import PolicyTable, legal_mask


def random_policy(table, rng, illegal=0.0):
    weights = np.where(legal_mask(table), rng.gamma(0.5, size=legal_mask(table).shape) + 1e-9, 0.0)
    share = np.minimum(illegal * rng.random(len(table.turns)) * 2, 1.0)
    probabilities = weights / weights.sum(1, keepdims=True) * (1 - share)[:, None]
    return PolicyTable(probabilities, np.maximum(0.0, 1 - probabilities.sum(1)), np.zeros(len(table.turns)))


def uniform(table):
    mask = legal_mask(table)
    nothing = np.zeros(len(table.turns))
    return PolicyTable(mask / mask.sum(1, keepdims=True), nothing, nothing)
