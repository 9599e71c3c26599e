"""Errors of the person who runs something."""

import pytest

from spiral_trl.errors import PlayerError, PlayError, UsageError, did_you_mean, game_failed, run_main, usage_errors


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


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("a\nb"), 2), (PlayError("a\nb"), 1), (PlayerError("a\nb"), 1)]
)
def test_programs_end_with_one_line(error, code, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as ended:
        run_main(main, [])
    assert (ended.value.code, *capsys.readouterr()) == (code, "", "error: a b\n")


def test_an_interrupted_program_says_so_and_no_more(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_main(main, [])
    assert (ended.value.code, *capsys.readouterr()) == (130, "", "interrupted\n")


def test_a_process_beside_the_first_tells_of_its_own_failure_and_not_of_bad_input(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for error, told in ((UsageError("x"), ""), (PlayError("x"), "error: x\n")):

        def main(argv, error=error):
            raise error

        with pytest.raises(SystemExit):
            run_main(main, [])
        assert capsys.readouterr().err == told


def test_the_error_for_a_games_code_is_one_line():
    error = game_failed("chess with seed 3", KeyError("e\n4"), "white: e4")
    assert str(error) == "chess with seed 3 raised KeyError: 'e\\n4'; moves so far: white: e4"
    assert str(game_failed("chess", "stands\nstill")) == "chess stands still; moves so far: none"
