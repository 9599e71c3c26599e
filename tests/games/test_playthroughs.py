"""Every game with words of its own has a golden playthrough in each of its observation styles, and a test replays it."""

import importlib
import re
from pathlib import Path

from toy_games import TreeGame

from spiral_trl.games import canonical_name, game_names
from spiral_trl.games.registry import _GAMES, parse_name


FOLDER = Path(__file__).parent


def replayed():
    """The golden files that tests replay, and the canonical names of their games."""
    files = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        if re.search("^def test_golden_playthroughs", path.read_text(encoding="utf-8"), re.MULTILINE):
            test = importlib.import_module(path.stem).test_golden_playthroughs
            (cases,) = [mark.args[1] for mark in test.pytestmark if mark.name == "parametrize"]
            files |= {file: canonical_name(name) for file, name, *_ in cases}
    return files


def without_playthrough(files):
    """Names of games, with the observation style where they have several, of which no file tells a game."""
    told = {(base, values.get("observation")) for base, values in map(parse_name, files.values())}
    missing = []
    for game in game_names():
        observation = _GAMES[game].parameters.get("observation")
        for style in observation.choices if observation else (None,):
            if (game, style) not in told:
                missing.append(f"{game}(observation={style})" if style else game)
    return missing


def test_every_game_has_one_in_each_observation_style():
    assert without_playthrough(replayed()) == []
    assert len(game_names()) >= 7


def test_a_game_without_one_is_found(register_game):
    name = register_game("never_written_down", lambda: TreeGame("never_written_down", ("end", (0, 0))))
    assert without_playthrough(replayed()) == [name]
    without_compact = {file: name for file, name in replayed().items() if name != "kuhn_poker(observation=compact)"}
    assert "kuhn_poker(observation=compact)" not in without_playthrough(without_compact)  # five cards are told so too
    del without_compact["kuhn_poker_five_cards_compact.txt"]
    assert "kuhn_poker(observation=compact)" in without_playthrough(without_compact)


def test_every_file_is_replayed_and_tells_a_whole_game():
    files = replayed()
    assert {path.name for path in (FOLDER / "playthroughs").iterdir()} == set(files)
    for file, name in files.items():
        text = (FOLDER / "playthroughs" / file).read_text(encoding="utf-8")
        assert text.startswith(f"# {name}, seed ")
        assert re.search(r"^## (terminal|truncated), returns \(.*\)\n\Z", text, re.MULTILINE)
        assert text.count("\n-> ") == text.count("\n## turn ") >= 2


def test_the_harder_variants_of_the_paper_are_among_them():
    assert {"tic_tac_toe(size=5)", "kuhn_poker(cards=5)"} <= set(replayed().values())
    assert any("resources=8" in name for name in replayed().values())
