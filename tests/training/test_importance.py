"""The correction for an engine that samples with other numerics, on numbers worked by hand."""

import math

import pytest
import torch

from spiral_trl.training.importance import importance_sampling_ratio


OLD = torch.log(torch.tensor([[0.6, 0.2, 0.9], [0.5, 0.5, 0.5]]))
SAMPLED = torch.log(torch.tensor([[0.3, 0.4, 0.9], [0.5, 0.25, 0.1]]))
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
# Ratios: 2, 1/2, 1 (product 1); 1, 2, and a masked token that would be 5 (product 2)


@pytest.mark.parametrize(
    ("mode", "low", "high", "expected"),
    [
        ("token_truncate", None, 1.5, [[1.5, 0.5, 1.0], [1.0, 1.5, 1.0]]),
        ("token_truncate", 0.75, 3.0, [[2.0, 0.75, 1.0], [1.0, 2.0, 1.0]]),
        ("token_mask", None, 1.5, [[0.0, 0.5, 1.0], [1.0, 0.0, 1.0]]),
        ("token_mask", 0.75, 1.5, [[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]]),
        ("sequence_truncate", None, 1.5, [[1.0], [1.5]]),
        ("sequence_truncate", None, 3.0, [[1.0], [2.0]]),
        ("sequence_mask", None, 1.5, [[1.0], [0.0]]),
        ("sequence_mask", 1.5, None, [[0.0], [2.0]]),
    ],
)
def test_ratios(mode, low, high, expected):
    ratio = importance_sampling_ratio(OLD, SAMPLED, MASK, mode=mode, low=low, high=high)
    torch.testing.assert_close(ratio, torch.tensor(expected))


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_truncate"])
def test_a_token_the_engine_could_not_score_counts_as_no_difference(mode):
    sampled = SAMPLED.clone()
    sampled[0, 0] = math.nan
    ratio = importance_sampling_ratio(OLD, sampled, MASK, mode=mode, low=None, high=None)
    assert not ratio.isnan().any()
    assert ratio[0, 0].item() == pytest.approx(1.0 if mode == "token_truncate" else 0.5)


@pytest.mark.parametrize("mode", ["token", "token_clip", "row_mask", ""])
def test_an_unknown_mode_is_refused_with_those_there_are(mode):
    with pytest.raises(
        ValueError, match=f"'{mode}'. Choose token_truncate, token_mask, sequence_truncate or sequence_m"
    ):
        importance_sampling_ratio(OLD, SAMPLED, MASK, mode=mode, low=None, high=2.0)
