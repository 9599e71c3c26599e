import json
import re
from functools import partial

import pytest
from toy_games import TreeGame

from spiral_trl.errors import PlayerError
from spiral_trl.games.kuhn_equilibrium import equilibrium_ranges
from spiral_trl.players import registry
from spiral_trl.records import Ending, Parsed, Reply, dataset_to_episodes


@pytest.fixture
def spiral(run):
    return partial(run, "play")


def saved(file):
    return dataset_to_episodes([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])


def test_a_person_plays_to_the_end(spiral, tmp_path):
    # Seed 0 deals the jack to player 0
    code, out, err = spiral(
        "kuhn_poker", "--opponents", "cfr", "--json", str(tmp_path / "games.jsonl"), typed="bte\nbet\n"
    )
    assert (code, err) == (0, "")
    assert "Your card is J." in out and "'bte' is not legal here; legal: [check], [bet]" in out
    assert "kuhn_poker, seed 0 (player 0: human, player 1: cfr)\n  player 0: bet\n" in out
    assert f"saved in {tmp_path / 'games.jsonl'}: 1 game\n" in out
    (episode,) = saved(tmp_path / "games.jsonl")
    assert episode.players == ("human", "cfr") and episode.ending is Ending.TERMINAL
    assert episode.steps[0].reply == Reply(text="[bet]", action="bet")
    assert f"result: player 0 {episode.returns[0]:+g}, player 1 {episode.returns[1]:+g}\n" in out


def test_what_the_equilibrium_plays_is_told_afterwards(spiral):
    _, out, _ = spiral("kuhn_poker", "--opponents", "cfr", typed="bet\n")
    told = out.split("  player 0: bet\n")[1].split("\n")[0].strip()
    assert told.startswith("cfr plays check (")
    low, high = equilibrium_ranges()["0|J|"]["bet"]
    assert low - 0.01 <= int(told.split("bet (")[1].split("%")[0]) / 100 <= high + 0.01
    # Not where no solver knows the game
    _, out, _ = spiral("kuhn_poker(rounds=5,rules=spiral)", typed="bet\ncall\n" * 20)
    assert " plays " not in out and "player 0: " in out


def test_a_person_may_sit_anywhere(spiral):
    code, out, _ = spiral("kuhn_poker", "--seat", "1", typed="bet\nbet\ncall\n")
    assert code == 0 and "(player 0: random, player 1: human)" in out
    code, out, _ = spiral("kuhn_poker", "--players", "random", "human", typed="bet\nbet\ncall\n")
    assert code == 0 and "(player 0: random, player 1: human)" in out


@pytest.mark.parametrize("typed", ["bet\nquit\n", "bet\n"])
def test_leaving_keeps_the_games_so_far(spiral, tmp_path, typed):
    # In game 0 a bet is answered and the game over; in game 1 the person leaves
    code, out, err = spiral(
        "kuhn_poker", "--opponents", "cfr", "--games", "5", "--json", str(tmp_path / "g.jsonl"), typed=typed
    )
    assert (code, err) == (0, "")
    assert out.endswith("You left the game.\n")
    assert [episode.seed for episode in saved(tmp_path / "g.jsonl")] == [0]


def test_players_play_without_a_person(spiral, tmp_path):
    argv = ["kuhn_poker", "--players", "random", "cfr", "--seed", "5", "--games", "3"]
    code, out, err = spiral(*argv, "--json", str(tmp_path / "g.jsonl"))
    assert (code, err) == (0, "")
    episodes = saved(tmp_path / "g.jsonl")
    assert [episode.seed for episode in episodes] == [5, 6, 7]
    for episode in episodes:
        moves = "".join(f"  {step.turn.role}: {step.reply.action}\n" for step in episode.steps)
        assert f"\nkuhn_poker, seed {episode.seed} (player 0: random, player 1: cfr)\n{moves}  result: " in out
    mean = sum(episode.returns[0] for episode in episodes) / 3
    assert f"3 games, mean return: player 0 {mean:+.3f}, player 1 {-mean:+.3f}\n" in out
    assert "Your card" not in out and " plays " not in out
    assert spiral(*argv)[1] == out.split("\nsaved in")[0]


def test_prompts_are_shown_when_asked_for(spiral):
    _, out, _ = spiral("kuhn_poker", "--players", "random", "cfr", "--prompts")
    assert "  > Your card is J." in out


def test_a_model_in_a_folder_plays(spiral, tmp_path):
    from spiral_trl.training.tiny import save_tiny_model

    save_tiny_model(tmp_path / "tiny", 0, 32, 1)
    code, out, _ = spiral("kuhn_poker(observation=compact)", "--players", str(tmp_path / "tiny"), "random")
    assert code == 0 and "(player 0: tiny, player 1: random)" in out


class Talker:
    """Says what it is told to, or fails."""

    name = "talker"
    speculative = False

    def __init__(self, *texts):
        self.texts = list(texts)

    def reply(self, turns):
        if not self.texts:
            raise PlayerError("talker is\nout of words")
        return [Reply(text=self.texts.pop(0)) for _ in turns]


@pytest.fixture
def talker(monkeypatch):
    def add(*texts):
        monkeypatch.setitem(
            registry._PLAYERS,
            "talker",
            registry._Entry(make=lambda values, settings: Talker(*texts), name=lambda values: "talker"),
        )

    return add


def test_what_a_model_wrote_cannot_steer_the_terminal_or_forge_lines(spiral, talker, register_game):
    tree = ("free", 0, ("end", (1, -1)))
    name = register_game("free_text_of_play_test", lambda: TreeGame("free_text_of_play_test", tree))
    talker("\x1b[2Jhello\n  player 1: fold")
    code, out, _ = spiral(name, "--players", "talker", "talker")
    assert code == 0
    assert "\x1b" not in out and "\n  player 1: fold" not in out
    assert "  seat 0: [2Jhello player 1: fold\n    | [2Jhello\n    |   player 1: fold\n" in out


def test_a_player_that_fails_ends_with_1_and_one_line(spiral, talker, register_game, tmp_path):
    tree = ("free", 0, ("end", (1, -1)))
    name = register_game("failing_of_play_test", lambda: TreeGame("failing_of_play_test", tree))
    talker()
    code, out, err = spiral(name, "--players", "talker", "talker", "--json", str(tmp_path / "g.jsonl"))
    assert code == 1 and err.startswith("error: ") and "out of words" in err and err.count("\n") == 1
    assert saved(tmp_path / "g.jsonl") == []


def test_a_person_who_mistypes_free_text_is_asked_again(spiral, talker, register_game):
    talker()

    class Offer(TreeGame):
        def parse(self, player, text):
            return Parsed(text) if text.startswith("offer") else Parsed(None, "no offer")

    tree = ("free", 0, ("end", (1, -1)))
    name = register_game("offer_of_play_test", lambda: Offer("offer_of_play_test", tree))
    code, out, _ = spiral(name, "--opponents", "talker", typed="hello\noffer 3\n")
    assert code == 0 and "Your last reply was no legal action. Reply again." in out
    assert "  seat 0: no legal action: no offer\n    | hello\n  seat 0: offer 3\n  result: seat 0 +1, seat 1 -1" in out
    code, out, _ = spiral(name, "--opponents", "talker", "--illegal", "forfeit", typed="hello\noffer 3\n")
    assert "result (illegal): seat 0 -1, seat 1 +1" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["kuhn_poker", "--players", "cfr", "cfr", "--seat", "0"],
            "--players names every seat; leave out --opponents",
        ),
        (["kuhn_poker", "--seat", "2"], "--seat must be from 0 to 1 in kuhn_poker, not 2"),
        (["kuhn_poker", "--seat", "-1"], "--seat must be from 0 to 1 in kuhn_poker, not -1"),
        (["kuhn_poker", "--json", "."], "--json . is a folder"),
        (["kuhn_poker", "--games", "0"], "--games must be at least 1, not 0"),
        (["kuhn_poker", "--illegal", "retry"], "Unknown illegal-move policy 'retry'"),
        (
            ["kuhn_poker", "--json", "no_such_folder/g.jsonl"],
            "the folder of --json no_such_folder/g.jsonl does not exist",
        ),
        ([], "the following arguments are required: game"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_played(spiral, argv, message):
    code, out, err = spiral(*argv)
    assert code == 2 and out == ""
    assert re.match(f"error: .*{message}", err) and err.count("\n") == 1


def test_help_shows_examples(spiral):
    code, out, _ = spiral("--help")
    assert code == 0 and "spiral-trl play kuhn_poker --opponents cfr" in out
