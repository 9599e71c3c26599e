"""Latent scaling tells features of one model from shared ones, also where a threshold hides them."""

import numpy as np
import pytest
import torch

from spiral_trl.errors import UsageError
from spiral_trl.sae.documents import Document
from spiral_trl.sae.specific import Streams, paired_streams, specific_features


WIDTH = 7
SHARED, AFTER, BEFORE, HIDDEN, WEAKER, RARE, ELSEWHERE = range(7)


class Orthogonal:
    """A dictionary whose features are orthogonal directions of length 2, each read above a threshold of its own."""

    layer, width, num_features, name = 4, WIDTH, WIDTH, "made"

    def __init__(self, threshold=0.0):
        self.directions = 2 * torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)))[0]
        self.threshold = torch.full((WIDTH,), threshold)

    def encode(self, stream):
        codes = stream @ self.directions.T / 4
        return torch.where(codes > self.threshold, codes, 0.0)

    def error(self, stream, codes):
        return stream - codes @ self.directions

    def scale(self, stream):
        return torch.ones_like(stream[:, :1])


def made_streams(dictionary, games=100, size=8, noise=0.0, seed=0):
    """`Streams` in which the models have features as their names say."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(games), size)
    codes = random.exponential(1, (len(group), WIDTH)) * (random.random((len(group), WIDTH)) < 0.3)
    codes[:, RARE] = np.where((group < 5) & (codes[:, SHARED] > 0), 1.0, 0.0)
    before, after = codes.copy(), codes.copy()
    before[:, [AFTER, RARE]] = 0
    after[:, BEFORE] = 0
    # There, but below the threshold of 0.5
    before[:, HIDDEN] = 0.4 * (codes[:, HIDDEN] > 0)
    after[:, HIDDEN] = 0.8 * (codes[:, HIDDEN] > 0)
    before[:, WEAKER] *= 0.3
    before[:, ELSEWHERE] = np.roll(after[:, ELSEWHERE], 1) * (after[:, ELSEWHERE] == 0)
    streams = []
    for part in (before, after):
        part = torch.from_numpy(part + noise * random.normal(size=part.shape)).float()
        streams.append(part @ dictionary.directions)
    return Streams(streams[0], streams[1], group)


def test_coefficients_are_those_of_the_streams():
    dictionary = Orthogonal(0.5)
    found = specific_features(dictionary, [made_streams(dictionary)])
    # Read from the model after, in the streams of before and after
    for feature, coefficient in ((SHARED, 1), (AFTER, 0), (HIDDEN, 0.5), (WEAKER, 0.3)):
        assert found.scaling[1, 0, feature] == pytest.approx(coefficient, abs=1e-5)
        assert found.scaling[1, 1, feature] == pytest.approx(1, abs=1e-5)
        assert found.ratio[1, feature] == pytest.approx(coefficient, abs=1e-5)
    assert np.isnan(found.ratio[1, BEFORE]) and found.ratio[0, BEFORE] == pytest.approx(0, abs=1e-5)
    # Never active on the model before, though half of it is there
    assert found.tokens[0, HIDDEN] == 0 < found.tokens[1, HIDDEN]
    assert found.after_specific.tolist() == [AFTER] and found.before_specific.tolist() == [BEFORE]
    # Both models have it, on other tokens
    assert found.ratio[1, ELSEWHERE] == pytest.approx(0, abs=1e-5)
    assert found.games[1, RARE] <= 5 and found.ratio[1, RARE] == pytest.approx(0, abs=1e-5)


def test_intervals_hold_the_ratio():
    dictionary = Orthogonal(0.5)
    inside = 0
    for seed in range(20):
        found = specific_features(dictionary, [made_streams(dictionary, noise=0.1, seed=seed)])
        assert found.after_specific.tolist() == [AFTER]
        inside += found.low[1, AFTER] <= 0 <= found.high[1, AFTER]
        assert 0 < found.high[1, AFTER] - found.low[1, AFTER] < 0.1
    assert inside >= 16


def test_one_model_with_itself_has_no_candidates():
    dictionary = Orthogonal()
    streams = made_streams(dictionary, noise=0.1)
    found = specific_features(dictionary, [Streams(streams.after, streams.after, streams.group)])
    assert not len(found.after_specific) and not len(found.before_specific)
    np.testing.assert_allclose(found.ratio, 1, atol=1e-6)


def test_parts_of_streams_add_up():
    dictionary = Orthogonal(0.5)
    whole = made_streams(dictionary, noise=0.1)
    parts = [Streams(*(values[at : at + 37] for values in whole)) for at in range(0, len(whole.group), 37)]
    one, other = (specific_features(dictionary, streams) for streams in ([whole], parts))
    np.testing.assert_allclose(one.scaling, other.scaling, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(one.high, other.high, rtol=1e-6)
    assert (one.games == other.games).all() and (one.tokens == other.tokens).all()


def test_json_of_candidates():
    import json

    dictionary = Orthogonal(0.5)
    data = specific_features(dictionary, [made_streams(dictionary)]).to_dict()
    json.dumps(data, allow_nan=False)
    assert data["layer"] == 4 and data["after_specific"]["count"] == 1
    (candidate,) = data["after_specific"]["candidates"]
    assert candidate["feature"] == AFTER and candidate["own"] == pytest.approx(1)


def test_streams_of_documents(build_model):
    from spiral_trl.sae.activations import read_residuals

    before, after = build_model("qwen3", seed=0), build_model("qwen3", seed=1)
    documents = [Document((1, 2, 3, 4), 7, start=1, step=0), Document((5, 6), 9, step=0)]
    (streams,) = paired_streams(before, after, documents, 2)
    assert streams.group.tolist() == [7, 7, 7, 9, 9]
    for model, stream in ((before, streams.before), (after, streams.after)):
        alone = [read_residuals(model, {"input_ids": torch.tensor([one.ids])}, [2])[2][0] for one in documents]
        torch.testing.assert_close(stream, torch.cat([alone[0][1:], alone[1]]), rtol=1e-4, atol=1e-5)


def test_bad_input():
    dictionary = Orthogonal()
    streams = made_streams(dictionary)
    with pytest.raises(UsageError, match="no streams"):
        specific_features(dictionary, [])
    with pytest.raises(UsageError, match="of the same tokens"):
        specific_features(dictionary, [Streams(streams.before[:5], streams.after, streams.group)])
    with pytest.raises(UsageError, match="width 5, but made reads 7"):
        specific_features(dictionary, [Streams(streams.before[:, :5], streams.after[:, :5], streams.group)])
