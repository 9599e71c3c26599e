import numpy as np
import pytest

from spiral_trl.games.chance import CHANCE, REPLY, SeededChance, choose_by_cdf, derive_seeds, hash_bits, uniforms


def test_one_part_is_splitmix64_from_seed_zero():
    # The first outputs of the reference implementation of SplitMix64 with state 0.
    assert [int(x) for x in hash_bits(np.arange(3))] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_scalar_equals_vectorised():
    seeds = derive_seeds(7, np.arange(50))
    index = np.arange(50) % 7
    together = uniforms(seeds, REPLY, index, 0)
    assert together.shape == (50,)
    for i in range(50):
        assert float(uniforms(int(seeds[i]), REPLY, int(index[i]), 0)) == together[i]
    grid = uniforms(seeds[:, None], CHANCE, np.arange(3))
    assert grid.shape == (50, 3)
    assert grid[4, 2] == float(uniforms(int(seeds[4]), CHANCE, 2))


def test_negative_and_large_parts_are_fine():
    values = [float(uniforms(seed, CHANCE, 0)) for seed in (-1, 0, 2**63 - 1, -(2**63))]
    assert len(set(values)) == 4
    assert all(0 <= value < 1 for value in values)


@pytest.mark.parametrize("stream", [CHANCE, REPLY])
@pytest.mark.parametrize("along", ["seeds", "positions"])
def test_draws_are_uniform(stream, along):
    """Forty chi-square statistics of 15 degrees of freedom: their sum lies in the middle 99.9% of chi-square(600)."""
    total = 0.0
    for block in range(40):
        numbers = np.arange(16_000)
        draws = uniforms(16_000 * block + numbers, stream, 0) if along == "seeds" else uniforms(block, stream, numbers)
        assert draws.min() >= 0 and draws.max() < 1
        counts = np.histogram(draws, bins=16, range=(0, 1))[0]
        total += ((counts - 1000) ** 2 / 1000).sum()
    assert 491 < total < 721


# 330.5 is the upper 0.1% point of chi-square with 255 degrees of freedom.
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((CHANCE, 0), (REPLY, 0)),  # streams
        ((CHANCE, 0), (CHANCE, 1)),  # positions
        ((REPLY, 0, 0), (REPLY, 1, 0)),  # turns
        ((REPLY, 1, 0), (REPLY, 0, 1)),  # turn and position are not interchangeable
    ],
)
def test_pairs_of_draws_are_independent(first, second):
    seeds = np.arange(64_000)
    a, b = uniforms(seeds, *first), uniforms(seeds, *second)
    counts = np.histogram2d(a, b, bins=16, range=((0, 1), (0, 1)))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 330.5
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(64_000)


def test_neighbouring_seeds_are_independent():
    draws = uniforms(np.arange(64_001), CHANCE, 0)
    counts = np.histogram2d(draws[:-1], draws[1:], bins=16, range=((0, 1), (0, 1)))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 330.5


def test_derived_seeds_are_distinct_and_not_negative():
    seeds = derive_seeds(0, np.arange(100)[:, None], np.arange(1000))
    assert seeds.dtype == np.int64
    assert seeds.min() >= 0
    assert len(np.unique(seeds)) == 100_000
    assert not np.array_equal(seeds, derive_seeds(1, np.arange(100)[:, None], np.arange(1000)))


def test_choose_by_cdf():
    cdf = np.cumsum([0.25, 0.0, 0.75])
    assert [int(choose_by_cdf(cdf, draw)) for draw in (0.0, 0.24, 0.25, 0.5, 1 - 2**-53)] == [0, 0, 2, 2, 2]
    assert choose_by_cdf(cdf, np.array([0.1, 0.9])).tolist() == [0, 2]
    # Ten tenths sum to less than one.
    assert int(choose_by_cdf(np.cumsum([0.1] * 10), 1 - 2**-53)) == 9
    assert int(choose_by_cdf(np.cumsum([1.0]), 0.7)) == 0


def test_seeded_chance_follows_the_seed_and_the_count_alone():
    one, two = SeededChance(3), SeededChance(3)
    mixed = [one.choose([0.5, 0.5]) for _ in range(200)]
    assert mixed == [two.choose([0.5, 0.5]) for _ in range(200)]
    assert mixed == [int(u >= 0.5) for u in uniforms(3, CHANCE, np.arange(200))]


def test_seeded_chance_respects_the_weights():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    chance = SeededChance(11)
    counts = np.bincount([chance.choose(weights) for _ in range(4000)], minlength=4)
    assert ((counts - 4000 * weights) ** 2 / (4000 * weights)).sum() < 16.3
