"""The tests of a gate on counts worked by hand, and that no input is lost to lists of nearest neighbours."""

import numpy as np
import pytest

from spiral_trl.sae.gates import Gate, and_margins, find_candidates, or_margins, wilson_bounds
from spiral_trl.sae.kernels import feature_sums
from spiral_trl.sae.relations import relate
from spiral_trl.stats import wilson_interval


def counts(only_a, only_b, both, outside=0, d_only_a=0, d_only_b=0, d_both=0):
    """n(A), n(B), n(D), n(AB), n(AD), n(BD), n(ABD) from the cells: tokens, and of these those with D."""
    return np.array(
        [
            [
                only_a + both,
                only_b + both,
                d_only_a + d_only_b + d_both + outside,
                both,
                d_only_a + d_both,
                d_only_b + d_both,
                d_both,
            ]
        ]
    )


def test_bounds_are_those_of_one_interval_at_a_time():
    successes, trials = np.array([0, 3, 10, 196, 0]), np.array([10, 10, 10, 200, 0])
    low, high = wilson_bounds(successes, trials)
    for at in range(4):
        one = wilson_interval(int(successes[at]), int(trials[at]))
        assert (low[at], high[at]) == pytest.approx((one.low, one.high), abs=1e-12)
    assert (low[4], high[4]) == (0, 1)


def test_a_conjunction_is_an_and():
    margin = and_margins(counts(1000, 2000, 500, outside=5, d_both=498), 0.95, 20)[0]
    low, _ = wilson_bounds(np.array([498]), np.array([500]))
    _, high = wilson_bounds(np.array([0]), np.array([1000]))
    assert margin == pytest.approx(low[0] - 0.5 - high[0])
    assert margin > 0.4


@pytest.mark.parametrize(
    ("case", "passes"),
    [
        # Two copies with noise: what only one of them has is D's half of the time
        (dict(only_a=1000, only_b=1000, both=100_000, d_only_a=500, d_only_b=500, d_both=99_000), False),
        # Dog within animal within noun: outside noun, animals are noise, half of it on tokens that dogs have
        (dict(only_a=50_000, only_b=100, both=9_900, d_only_b=35, d_both=6_900), False),
        # The same where noise only adds animals, on tokens without dogs: all but a few animals are nouns
        (dict(only_a=50_000, only_b=50, both=1_000, d_both=900), False),
        # Three inputs: A and B alone do not tell
        (dict(only_a=4000, only_b=4000, both=2000, d_both=500), False),
        # D where A is, whatever B
        (dict(only_a=2000, only_b=2000, both=2000, d_only_a=1990, d_both=1990), False),
        # A necessity of 0.94, and of 0.96
        (dict(only_a=2000, only_b=2000, both=1000, outside=60, d_both=940), False),
        (dict(only_a=2000, only_b=2000, both=1000, outside=40, d_both=960), True),
        # Too few tokens with only A
        (dict(only_a=19, only_b=2000, both=100, d_both=100), False),
        (dict(only_a=20, only_b=2000, both=100, d_both=100), True),
        # D on two thirds of what has both, and on none of the rest: for certain half apart, with enough tokens
        (dict(only_a=2000, only_b=2000, both=3000, d_both=2000), True),
        (dict(only_a=30, only_b=30, both=45, d_both=30), False),
    ],
)
def test_what_passes_for_an_and(case, passes):
    assert (and_margins(counts(**case), 0.95, 20)[0] >= 0) is np.bool_(passes)


@pytest.mark.parametrize(
    ("case", "passes"),
    [
        (dict(only_a=1000, only_b=500, both=100, outside=5, d_only_a=990, d_only_b=495, d_both=99), True),
        # 73 of 73 has a lower end of 0.95, 72 of 72 has not
        (dict(only_a=1000, only_b=73, both=0, d_only_a=1000, d_only_b=73), True),
        (dict(only_a=1000, only_b=72, both=0, d_only_a=1000, d_only_b=72), False),
        # A third part: A and B hold too little of D
        (dict(only_a=1000, only_b=500, both=0, outside=200, d_only_a=995, d_only_b=498), False),
        # Either, but not both
        (dict(only_a=1000, only_b=1000, both=500, d_only_a=998, d_only_b=998), False),
        # B lies within A: what only B has is noise
        (dict(only_a=9000, only_b=100, both=1000, d_only_a=8950, d_only_b=50, d_both=995), False),
    ],
)
def test_what_passes_for_an_or(case, passes):
    assert (or_margins(counts(**case), 0.95)[0] >= 0) is np.bool_(passes)


def test_a_gate_tells_its_cells():
    gate = Gate("and", 3, 7, 2, (5, 4), (1000, 600), 310, 300, (305, 304), 299)
    told = gate.to_dict()
    assert (told["kind"], told["layer"], told["feature"], told["upstream"]) == ("and", 3, 7, [5, 4])
    assert told["counts"] == {
        "first": 1000,
        "second": 600,
        "down": 310,
        "both": 300,
        "only_first": 700,
        "only_second": 300,
        "down_both": 299,
        "down_only_first": 6,
        "down_only_second": 5,
    }
    assert told["rates"]["down_given_both"]["rate"] == pytest.approx(299 / 300)
    assert told["rates"]["down_given_only_second"]["low"] == pytest.approx(wilson_interval(5, 300).low)
    assert told["rates"]["either_given_down"]["rate"] == pytest.approx(310 / 310)


@pytest.mark.parametrize("rule", ["absolute", "relative"])
@pytest.mark.parametrize("top_k", [2, 5])
def test_short_lists_lose_no_candidate(make_store, tmp_path, rule, top_k):
    """Many upstream features hold all of a downstream one, many lie within one, and many downstream ones crowd theirs."""
    rng = np.random.default_rng(0)
    tokens = 3000
    base = rng.random((tokens, 6)) < 0.1
    wide = base[:, np.arange(36) % 3] | (rng.random((tokens, 36)) < 0.05)
    part = rng.random((tokens, 36))
    # Parts of 3 to 60 per cent, and their complements
    narrow = base[:, 3 + np.arange(36) % 3] & (part < np.repeat([0.03, 0.05, 0.07, 0.1, 0.3, 0.6], 6))
    rest = base[:, 3:] & (part[:, :3] >= 0.06)
    up = np.concatenate([wide, narrow, rest], axis=1)
    shares = np.repeat([0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99], 75)
    crowd = np.tile(up, 8) & (rng.random((tokens, len(shares))) < shares)
    # Of equal ones the lower number is listed
    down = np.concatenate([crowd, base], axis=1)
    # By the relative rule, one firing in fifty is too weak
    up, down = (codes * rng.uniform(0.18, 1, codes.shape) for codes in (up, down))
    store = make_store({0: up.astype(np.float32), 1: down.astype(np.float32)}, shards=2)
    relations = relate(store, tmp_path / "relations", top_k=top_k)
    edges = relations.edges((0, 1), rule)
    sums = feature_sums(store, 0), feature_sums(store, 1)
    wanted = np.zeros(down.shape[1], bool)
    own = {20, *range(len(shares), len(shares) + 5)}
    wanted[list(own)] = True
    found = find_candidates(store, (0, 1), sums, edges, wanted, 0.9, rule, 0.2)
    got = set(zip(found.upstream.tolist(), found.downstream.tolist(), strict=True))
    assert {feature for _, feature in got} == own
    limit = 0.0 if rule == "absolute" else 0.2
    a, d = (codes.astype(np.float32) > limit * codes.astype(np.float32).max(0).astype(float) for codes in (up, down))
    both = a.T.astype(int) @ d
    necessity, sufficiency = both / d.sum(0), both / a.sum(0)[:, None]
    needed, parts = set(), set()
    for feature in np.nonzero(wanted)[0]:
        needed |= {(one, feature) for one in np.nonzero(necessity[:, feature] >= 0.9)[0]}
        enough = np.nonzero(sufficiency[:, feature] >= 0.9)[0]
        for one in enough:
            for other in enough:
                if one < other and necessity[one, feature] + necessity[other, feature] >= 0.9:
                    parts |= {(one, feature), (other, feature)}
    assert needed <= got
    assert parts <= got
    if top_k == 2:
        # The relations alone lack some of either
        listed = set(zip(edges["upstream"].tolist(), edges["downstream"].tolist(), strict=True))
        assert needed - listed
        assert parts - needed - listed
    at = found.upstream, found.downstream
    assert np.array_equal(found.both, both[at])
    assert np.allclose(found.necessity, necessity[at])
    assert np.allclose(found.sufficiency, sufficiency[at])
