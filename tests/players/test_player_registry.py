import pyspiel
import pytest
from scripts import printed_by

from spiral_trl.games.solver_state import SolverState
from spiral_trl.players import registry
from spiral_trl.players.bots import CFRPlayer, RandomPlayer
from spiral_trl.players.endpoint import EndpointPlayer
from spiral_trl.players.human import HumanPlayer
from spiral_trl.players.registry import (
    ModelSettings,
    canonical_player_name,
    check_player,
    make_player,
    player_names,
)
from spiral_trl.players.search import MCTSPlayer, MinimaxPlayer
from spiral_trl.records import Turn
from spiral_trl.training.checks import can_play, check_opponent
from spiral_trl.training.tiny import save_tiny_model


URL = "http://localhost:8000/v1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Name of a folder with a model, relative to the working directory."""
    save_tiny_model(tmp_path / "outputs" / "kuhn", 0, 32, 1)
    monkeypatch.chdir(tmp_path)
    return "outputs/kuhn"


@pytest.mark.parametrize(
    ("name", "kind", "canonical"),
    [
        ("random", RandomPlayer, "random"),
        (" cfr ", CFRPlayer, "cfr"),
        ("minimax()", MinimaxPlayer, "minimax"),
        ("mcts", MCTSPlayer, "mcts(simulations=100)"),
        ("mcts( rollouts = 3, simulations=7 )", MCTSPlayer, "mcts(simulations=7,rollouts=3)"),
        ("mcts(uct_c=1.5)", MCTSPlayer, "mcts(simulations=100,uct_c=1.5)"),
        ("human", HumanPlayer, "human"),
        (f"endpoint(model=m,base_url={URL},api_key_env=none)", EndpointPlayer, "endpoint(model=m)"),
        (
            f"endpoint(model=org/m,base_url={URL},api_key_env=none,max_tokens=9,temperature=0,top_p=0.5,max_calls=3)",
            EndpointPlayer,
            "endpoint(model=org/m,max_tokens=9,temperature=0,top_p=0.5)",
        ),
    ],
)
def test_a_name_makes_the_player_that_it_names(name, kind, canonical):
    check_player(name)
    player = make_player(name)
    assert type(player) is kind
    assert player.name == canonical_player_name(name) == canonical


def test_parameters_arrive():
    player = make_player("mcts(simulations=7,uct_c=1.5,rollouts=3)")
    assert (player.simulations, player.uct_c, player.rollouts) == (7, 1.5, 3)
    player = make_player(
        f"endpoint(model=m,base_url={URL}/,api_key_env=none,max_tokens=9,max_tokens_field=max_completion_tokens,"
        "temperature=0.5,timeout=7,max_retries=2,max_calls=11,concurrency=3)"
    )
    assert player._request == {"model": "m", "max_completion_tokens": 9, "temperature": 0.5}
    assert (player.base_url, player.timeout, player.max_retries) == (URL, 7, 2)
    assert (player.max_calls, player.concurrency) == (11, 3)


def test_a_model_is_a_folder_or_has_a_slash(folder, tmp_path):
    for name in (folder, f"./{folder}", f"{folder}/", str(tmp_path / folder), f"model(path={folder})"):
        check_player(name, "kuhn_poker")
        assert canonical_player_name(name) == make_player(name).name == "kuhn"
    for name in ("Qwen/Qwen3-0.6B", "model(path=Qwen/Qwen3-0.6B,revision=main)"):
        check_player(name, "kuhn_poker")
    assert canonical_player_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_a_folder_may_have_any_name(folder, tmp_path):
    for name in ("kuhn (old), 2", "random"):
        (tmp_path / folder).rename(tmp_path / name)
        path = f"./{name}" if name == "random" else name
        check_player(path)
        assert make_player(path).name == canonical_player_name(path)
        folder = name
    # A built-in player goes before a folder, and no folder passes for one
    assert isinstance(make_player("random"), RandomPlayer)
    assert canonical_player_name("./random") == "model(path=random)"


def test_what_a_models_name_states_goes_before_the_settings(folder):
    settings = ModelSettings(max_new_tokens=5, temperature=0.5, top_k=3)
    player = make_player(f"model(path={folder},temperature=2,dtype=bfloat16,device=cpu)", settings)
    assert (player.max_new_tokens, player.temperature, player.top_k) == (5, 2, 3)
    assert player.name == "kuhn(temperature=2,dtype=bfloat16)"
    assert make_player(folder, settings).temperature == 0.5


def test_players_that_are_known():
    assert player_names() == ["cfr", "endpoint", "human", "mcts", "minimax", "model", "random"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "unknown player ''; allowed: cfr, endpoint, human, mcts, minimax, model, random, FOLDER, ORG/MODEL"),
        ("randm", "unknown player 'randm'; allowed: .*; did you mean 'random'?"),
        ("MCTS(simulations=5)", "unknown player 'MCTS'; allowed: .*; did you mean 'mcts'?"),
        ("random(seed=1)", "unknown parameter of random 'seed'; allowed: none"),
        ("mcts(simulation=5)", "unknown parameter of mcts 'simulation'; .*; did you mean 'simulations'?"),
        ("mcts(simulations=many)", "simulations of mcts must be a whole number, not 'many'"),
        ("mcts(simulations=0)", "simulations of mcts must be from 1 to 1e\\+06, not 0"),
        ("mcts(simulations=5", "player name 'mcts\\(simulations=5' must end with '\\)'"),
        ("mcts(5)", "player name 'mcts\\(5\\)': '5' is not of the form parameter=value"),
        ("endpoint", "player endpoint needs model, as in endpoint\\(model=...\\)"),
        ("endpoint(model=)", "player endpoint needs model"),
        ("endpoint(model=m,base_url=localhost:8000,api_key_env=none)", "base_url of endpoint must be a URL such as"),
        ("endpoint(model=m,api_key=sk-hidden)", "unknown parameter of endpoint 'api_key'; allowed: .*api_key_env"),
        ("model", "player model needs path"),
        ("model(path=./no/such/folder)", "The model folder ./no/such/folder does not exist"),
        ("./no/such/folder", "The model folder ./no/such/folder does not exist"),
        ("model(path=Qwen/Qwen3-0.6B,temperature=0)", "temperature of a model must be above 0"),
        ("model(path=Qwen/Qwen3-0.6B,dtype=int8)", "unknown value of dtype in model 'int8'"),
    ],
)
def test_a_wrong_name_is_one_line_whoever_asks(name, message):
    for ask in (check_player, make_player):
        with pytest.raises(ValueError, match=message) as error:
            ask(name)
        assert "\n" not in str(error.value) and "sk-hidden" not in str(error.value)


def test_a_missing_key_is_known_before_any_call(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for ask in (check_player, make_player):
        with pytest.raises(ValueError, match="needs a key in the environment variable OPENAI_API_KEY"):
            ask(f"endpoint(model=m,base_url={URL})")


@pytest.mark.parametrize(
    ("name", "game", "reason"),
    [
        ("minimax", "kuhn_poker", "minimax cannot play kuhn_poker: it has hidden information"),
        ("mcts(simulations=5)", "kuhn_poker", "mcts.* cannot play kuhn_poker: it has hidden information"),
        ("cfr", "kuhn_poker(rounds=5,rules=spiral)", "cfr cannot play kuhn_poker.*rules=spiral.*: no OpenSpiel game"),
        ("random", "kuhn", "unknown game 'kuhn'; .*did you mean 'kuhn_poker'"),
        ("human", "kuhn", "unknown game 'kuhn'"),
    ],
)
def test_a_game_that_a_player_cannot_play(name, game, reason):
    for ask in (check_player, check_opponent):
        with pytest.raises(ValueError, match=reason):
            ask(name, game)
    assert not can_play(name, game)


@pytest.mark.parametrize("name", ["random", "cfr", "human", f"endpoint(model=m,base_url={URL},api_key_env=none)"])
def test_games_that_players_can_play(name):
    check_player(name, "kuhn_poker")
    assert can_play(name, "kuhn_poker(rounds=3)")


def test_a_board_game_is_for_those_that_search(register_game):
    class Board:
        num_players, roles, worst_returns, ending, name = 2, ("x", "o"), (-1.0, -1.0), None, "board_of_registry_test"

        def reset(self, seed, chance=None):
            state = pyspiel.load_game("connect_four").new_initial_state()
            self.state = SolverState(state, {str(action): action for action in state.legal_actions()})

        def turns(self):
            return (Turn(self.name, 0, 0, 0, 0, "x", (), tuple(self.state.actions), None, self.state),)

    name = register_game("board_of_registry_test", Board)
    check_player("mcts", name)
    with pytest.raises(ValueError, match="minimax cannot play board_of_registry_test: it has more than 50,000 pos"):
        check_player("minimax", name)
    assert can_play("mcts", name) and not can_play("minimax", name) and can_play("random", name)


def test_checking_loads_no_model_and_no_heavy_library(folder):
    code = (
        "import sys\nfrom spiral_trl.players.registry import check_player\n"
        f"check_player({folder!r}, 'kuhn_poker'); check_player('minimax')\n"
        f"check_player('endpoint(model=m,base_url={URL},api_key_env=none)')\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'httpx2') if name in sys.modules])"
    )
    assert printed_by(code) == "[]"


def test_every_name_is_described():
    """A new player must be documented; see docs/players.md."""
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "players.md").read_text(encoding="utf-8")
    for name, entry in registry._PLAYERS.items():
        assert f"`{name}" in text
        for parameter in entry.parameters:
            assert f"`{parameter}`" in text, f"{name}({parameter}=...) is not described"
