"""A run against a pool: its ratings and pay-offs, in the page and the card."""

from __future__ import annotations

import re

import pytest

from spiral_trl.hub.card import write_model_card
from spiral_trl.hub.report import write_report
from spiral_trl.hub.summary import summarise
from spiral_trl.players.pool import LEARNER, Member, PoolState


@pytest.fixture
def pool():
    """Two members of which the policy beat the first 3:1 and drew with the second."""
    state = PoolState(members=[Member(0, 0, 0), Member(1, 25, 1500)], taken=2)
    state.payoffs = {(1, 0): (2, 0, 1)}
    state.recent = [{(LEARNER, 0): (3, 0, 1), (1, LEARNER): (0, 4, 0)}]
    return state.report()


def test_the_report_of_a_pool_is_what_was_played(pool):
    assert [member["step"] for member in pool["members"]] == [0, 1500]
    assert pool["games"] == [[0, 3, 4], [3, 0, 4], [4, 4, 0]]
    assert pool["score"] == [
        [None, pytest.approx(1 / 3), 0.25],
        [pytest.approx(2 / 3), None, 0.5],
        [0.75, 0.5, None],
    ]
    assert pool["members"][0]["rating"] == 0 < pool["rating"]


def test_page_and_card_show_it(metrics, pool, tmp_path):
    metrics["pool"] = pool
    write_model_card(metrics, tmp_path / "README.md")
    rating = f"{pool['members'][1]['rating']:+.0f}"
    card = (tmp_path / "README.md").read_text()
    assert f"| step 1,500 | {rating} | 50.0% | 4 |" in card and "| step 0 | +0 | 75.0% | 4 |" in card
    write_report(metrics, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '<a href="#pool">' in page
    row = re.search(r">step 1,500</th><td[^>]*>(.*?)</tr>", page).group(1)
    assert re.sub(r"<[^>]*>", " ", row).split() == [rating, "66.7%", "50.0%"]


def test_a_run_without_a_pool_shows_none(metrics, tmp_path):
    write_report(metrics, [], tmp_path / "report.html")
    assert 'id="pool"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"games": [[0]]}, "a row for each member and one for the policy"),
        ({"score": [[None] * 3, [None] * 3, [None, "much", None]]}, "must be a number"),
        ({"rating": "high"}, "'rating'.* must be a number"),
        ({"members": {}}, "'members'.* must be a list"),
    ],
)
def test_what_is_no_pool_is_refused(metrics, pool, change, message):
    with pytest.raises(ValueError, match=message):
        summarise({**metrics, "pool": {**pool, **change}})
