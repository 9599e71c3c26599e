import numpy as np
import pytest

from spiral_trl.errors import PlayerError
from spiral_trl.games import make_game
from spiral_trl.players.human import HumanPlayer, PersonLeft, printable
from spiral_trl.records import Reply, Turn


def person(*lines):
    """A player with a script of lines, and what it is shown."""
    script, shown = list(lines), []

    def read(prompt):
        shown.append(prompt)
        if not script:
            raise EOFError
        line = script.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    return HumanPlayer(read, shown.append), shown


def turn(*contents, legal=("check", "bet"), role="player 0", seed=0):
    messages = tuple({"role": "user", "content": content} for content in contents)
    return Turn("some_game", 0, seed, 0, 0, role, messages, legal)


@pytest.mark.parametrize("line", ["bet", " BET ", "[bet]", "I go for [Bet].", "\\boxed{bet}"])
def test_an_action_may_be_typed_bare_or_in_brackets(line):
    player, _ = person(line)
    assert player.reply([turn("move")]) == [Reply(text="[bet]")]


def test_a_typo_is_asked_again_with_the_reason():
    player, shown = person("bte", "", "[bet] [check]", "check")
    assert player.reply([turn("your move")]) == [Reply(text="[check]")]
    assert shown == [
        "\nyour move",
        "player 0> ",
        "'bte' is not legal here; legal: [check], [bet]. Type `quit` to leave.",
        "player 0> ",
        "player 0> ",
        "the reply is ambiguous: it names 2 legal actions, [bet], [check]. Type `quit` to leave.",
        "player 0> ",
    ]


def test_free_text_is_passed_on():
    player, _ = person("", "I offer [2 Wood] for 1 Gold.")
    assert player.reply([turn("trade", legal=None)]) == [Reply(text="I offer [2 Wood] for 1 Gold.")]


def test_a_bare_action_is_put_into_a_box_where_a_game_has_actions_that_it_does_not_list():
    game = make_game("simple_negotiation(resources=2)")
    game.reset(0)
    for typed, text, action in (
        ("Pass", r"\boxed{Pass}", "Pass"),
        ("offer: 2 wood -> 1 gold", r"\boxed{offer: 2 wood -> 1 gold}", "Offer: 2 Wood -> 1 Gold"),
        ("I have Wood. [Pass]", "I have Wood. [Pass]", "Pass"),
        (r"\boxed{Pass}", r"\boxed{Pass}", "Pass"),
    ):
        player, _ = person("", typed)
        (reply,) = player.reply(game.turns())
        assert reply == Reply(text=text) and game.parse(0, text).action == action


@pytest.mark.parametrize("leaving", [[], ["quit"], ["bte", " QUIT "], [KeyboardInterrupt()]])
@pytest.mark.parametrize("legal", [("check", "bet"), None])
def test_a_person_may_leave(leaving, legal):
    player, _ = person(*leaving) if legal or len(leaving) < 2 else person(leaving[-1])
    with pytest.raises(PersonLeft, match="the person left the game") as error:
        player.reply([turn("move", legal=legal)])
    assert isinstance(error.value, PlayerError)


def test_what_others_wrote_cannot_steer_the_terminal():
    attack = "\x1b[2J\x1b]0;title\x07hi\rho\x08\x9b31m\u202egnp\u200b\u2028\x00\n\ttab"
    player, shown = person("bet")
    player.reply([turn(attack, role="player\x1b[1m")])
    assert shown == ["\n[2J]0;titlehiho31mgnp\n\ttab", "player[1m> "]
    assert printable("caf\u00e9 \u2660 \u4f60") == "caf\u00e9 \u2660 \u4f60"


def test_only_what_is_new_in_the_chat_is_shown():
    player, shown = person(*["bet"] * 5)
    player.reply([turn("rules", "one")])
    player.reply([turn("rules", "one", "two", "three")])
    player.reply([turn("rules", "one", "two", "three")])
    player.reply([turn("rules", "other", seed=1)])
    player.reply([turn("all in one message")])
    assert [text for text in shown if not text.endswith("> ")] == [
        "\nrules\n\none",
        "\ntwo\n\nthree",
        "\nthree",
        "\nrules\n\nother",
        "\nall in one message",
    ]


def test_own_replies_are_not_read_back():
    player, shown = person("bet")
    chat = ("user", "rules"), ("assistant", "[check]"), ("user", "your move")
    asked = Turn("g", 0, 0, 0, 0, "x", tuple({"role": r, "content": c} for r, c in chat), ("bet",))
    player.reply([asked])
    assert shown[0] == "\nrules\n\nyour move"


def test_each_game_is_asked_for():
    player, _ = person("bet", "check", "bet")
    turns = [turn("a"), turn("b")]
    which, seeds = np.array([1, 0, 1]), np.arange(3)
    replies, of = player.sample(turns, which, seeds, seeds)
    assert [replies[i].text for i in of] == ["[bet]", "[check]", "[bet]"]
    assert player.speculative is False and player.name == "human"
