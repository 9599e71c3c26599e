"""Errors of the person who runs something."""

import pytest

from spiral_trl.errors import UsageError, did_you_mean, usage_errors


def test_a_message_is_one_line():
    assert str(UsageError("too many\n  games:\t5")) == "too many games: 5"
    assert isinstance(UsageError("x"), ValueError)


@pytest.mark.parametrize("kind", [ValueError, TypeError, OSError])
def test_checks_become_usage_errors(kind):
    with pytest.raises(UsageError, match="^games: no such thing$") as caught, usage_errors("games"):
        raise kind("no such thing")
    assert isinstance(caught.value.__cause__, kind)


def test_a_usage_error_passes_unchanged_and_a_defect_stays_a_defect():
    with pytest.raises(UsageError, match="^mine$"), usage_errors("where"):
        raise UsageError("mine")
    with pytest.raises(KeyError), usage_errors("where"):
        raise KeyError("defect")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.txt: No such file"), usage_errors():
        open(tmp_path / "nothing.txt")


def test_the_nearest_name_is_suggested_or_none():
    assert did_you_mean("kuhn_pokr", ["leduc_poker", "kuhn_poker"]) == "; did you mean 'kuhn_poker'?"
    assert did_you_mean("zzz", ["kuhn_poker"]) == ""
