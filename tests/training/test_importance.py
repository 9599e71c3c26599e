import math

import pytest
import torch

from spiral_trl.training.importance import importance_sampling_ratio


# Ratios of the tokens, by row: 2, 1/2, 4 (product 4); 1/4, 1/4, masked (product 1/16); 1, no value, 1 (product 1)
RATIOS = [[2.0, 0.5, 4.0], [0.25, 0.25, 9.0], [1.0, math.nan, 1.0]]
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])


def ratio(mode, low, high):
    sampling = torch.tensor([[-1.0, -2.0, -3.0]] * 3)
    old = sampling + torch.tensor(RATIOS).log()
    # The engine has no value where the ratio is NaN; the training model always has one.
    sampling = torch.where(old.isnan(), torch.nan, sampling)
    old = torch.where(old.isnan(), -2.5, old)
    return importance_sampling_ratio(old, sampling, MASK, mode=mode, low=low, high=high)


@pytest.mark.parametrize(
    ("mode", "low", "high", "expected"),
    [
        ("token_truncate", None, 3.0, [[2, 0.5, 3], [0.25, 0.25, 1], [1, 1, 1]]),
        ("token_truncate", 0.4, 3.0, [[2, 0.5, 3], [0.4, 0.4, 1], [1, 1, 1]]),
        ("token_truncate", None, None, [[2, 0.5, 4], [0.25, 0.25, 1], [1, 1, 1]]),
        ("token_mask", None, 3.0, [[2, 0.5, 0], [0.25, 0.25, 1], [1, 1, 1]]),
        ("token_mask", 0.4, None, [[2, 0.5, 4], [0, 0, 1], [1, 1, 1]]),
        ("sequence_truncate", None, 3.0, [[3], [1 / 16], [1]]),
        ("sequence_truncate", 0.1, 5.0, [[4], [0.1], [1]]),
        ("sequence_mask", None, 3.0, [[0], [1 / 16], [1]]),
        ("sequence_mask", 0.1, 5.0, [[4], [0], [1]]),
        ("sequence_mask", None, None, [[4], [1 / 16], [1]]),
    ],
)
def test_ratios_worked_by_hand(mode, low, high, expected):
    torch.testing.assert_close(ratio(mode, low, high), torch.tensor(expected, dtype=torch.float32))


def test_bounds_belong_to_what_is_kept():
    sampling = torch.zeros(1, 2)
    old = torch.tensor([[0.5, 2.0]]).log()
    low, high = old.exp()[0].tolist()
    kept = importance_sampling_ratio(old, sampling, torch.ones(1, 2), mode="token_mask", low=low, high=high)
    torch.testing.assert_close(kept, torch.tensor([[0.5, 2.0]]))


def test_a_token_without_value_does_not_hide_the_others():
    sampling = torch.tensor([[math.nan, -1.0]])
    old = torch.tensor([[-5.0, -1.0 + math.log(2)]])
    for mode, expected in {"token_truncate": [[1.0, 2.0]], "sequence_truncate": [[2.0]]}.items():
        got = importance_sampling_ratio(old, sampling, torch.ones(1, 2), mode=mode, low=None, high=None)
        torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize("mode", ["token", "sequence_", "tokens_mask", "sequence_clip", ""])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ValueError, match="vllm_importance_sampling_mode") as error:
        ratio(mode, None, 3.0)
    assert repr(mode) in str(error.value) and "sequence_mask" in str(error.value)
    assert "\n" not in str(error.value)
