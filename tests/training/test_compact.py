"""The embedded model reads every compact form: no word is unknown, no prompt and no reply longer than declared."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spiral_trl.games import make_game, tabulate
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.rollout import play
from spiral_trl.training.checks import check_embedded_games
from spiral_trl.training.compact import compact_form, compact_words
from spiral_trl.training.tiny import (
    ACTIONS,
    OBSERVATION_WORDS,
    SPECIAL_TOKENS,
    build_tiny_model,
    completion_text,
    needed_positions,
    random_play_dataset,
    reply_length,
    save_tiny_model,
    warm_start,
)


KUHN = "kuhn_poker(observation=compact)"
GAMES = [
    KUHN,
    "kuhn_poker(cards=12,observation=compact)",
    "leduc_poker(observation=compact)",
    "liars_dice(dice_sides=4,observation=compact)",
    "liars_dice(numdice=2,observation=compact)",
    "tic_tac_toe(observation=compact)",
    "tic_tac_toe(size=5,observation=compact)",
    "connect_four(observation=compact)",
    "connect_four(rows=4,columns=9,observation=compact)",
    "pig(target=30,players=3,observation=compact)",
    "simple_negotiation(resources=2,observation=compact)",
    "simple_negotiation(resources=2,max_turns=30,observation=compact)",
]


def random_play(game, games=60):
    player = RandomPlayer()
    return play(game, [player] * make_game(game).num_players, np.arange(games), max_turns=400, tabulated=False)


@pytest.mark.parametrize("game", GAMES)
def test_no_word_of_random_play_is_unknown(game):
    _, tokenizer = build_tiny_model(0, games=[game])
    longest_prompt = longest_reply = 0
    for step in random_play(game).samples:
        prompt = tokenizer.apply_chat_template(list(step.turn.messages), add_generation_prompt=True, return_dict=False)
        reply = tokenizer.encode(completion_text(step.turn, step.reply.action))
        assert tokenizer.unk_token_id not in [*prompt, *reply], step
        assert tokenizer.decode(reply) == completion_text(step.turn, step.reply.action)
        longest_prompt = max(longest_prompt, len(prompt))
        longest_reply = max(longest_reply, len(reply) + 1)
    assert longest_reply <= reply_length(game)
    assert longest_prompt + reply_length(game) <= needed_positions(game) <= tokenizer.model_max_length
    assert longest_prompt > (needed_positions(game) - reply_length(game)) / 5, "declared far too long"


@pytest.mark.parametrize("game", [KUHN, "kuhn_poker(cards=5,observation=compact)", "leduc_poker(observation=compact)"])
def test_the_longest_prompt_is_as_declared(game):
    words = [len(turn.messages[-1]["content"].split()) for turn in tabulate(game).turns]
    assert max(words) == compact_form(game).prompt
    used = {word for turn in tabulate(game).turns for word in turn.messages[-1]["content"].split()}
    replies = {word for turn in tabulate(game).turns for a in turn.legal_actions for word in [f"[{a}]"]}
    assert used | replies == set(compact_form(game).words)


def test_the_longest_offer_is_as_declared_and_read_back():
    game = make_game("simple_negotiation(resources=2,observation=compact)")
    game.reset(0)
    reply = "[offer: 10 wood + 10 gold -> 10 wood + 10 gold]"
    assert len(reply.split()) == compact_form(game.name).reply
    _, tokenizer = build_tiny_model(0, games=[game.name])
    assert tokenizer.decode(tokenizer.encode(reply)) == reply
    game.step({0: game.parse(0, reply).action})
    prompt = game.turns()[0].messages[-1]["content"]
    assert len(prompt.split()) == compact_form(game.name).prompt
    assert tokenizer.unk_token_id not in tokenizer.encode(prompt)


def test_every_gain_that_trades_can_bring_is_known():
    words = set(compact_form("simple_negotiation(resources=2,observation=compact)").words)
    # Player 0 with w wood and g gold of the 20 and 20 there are, each worth 5 and 15 to it
    assert {str(5 * (w - 10) + 15 * (g - 10)) for w in range(21) for g in range(21)} <= words


# ------------------------------------------------------------------------------------------------------- vocabulary


def test_the_vocabulary_for_kuhn_poker_does_not_change():
    _, tokenizer = build_tiny_model(0)
    words = (
        "<|pad|> <|end|> <|user|> <|assistant|> <|unk|> [check] [bet] [call] [fold] player 0 1 card J Q K history none "
        "check bet call fold"
    ).split()
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == words
    model, named = build_tiny_model(3, games=[KUHN])
    plain, _ = build_tiny_model(3)
    assert named.get_vocab() == tokenizer.get_vocab()
    assert model.config.to_dict() == plain.config.to_dict() and model.config.max_position_embeddings == 128
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def test_other_games_words_come_after_kuhn_pokers():
    games = ["tic_tac_toe(observation=compact)", "leduc_poker(observation=compact)", KUHN]
    _, kuhn = build_tiny_model(0, reasoning=True)
    _, mixed = build_tiny_model(0, reasoning=True, games=games)
    before, after = kuhn.get_vocab(), mixed.get_vocab()
    assert {word: after[word] for word in before} == before
    added = [word for word, _ in sorted(after.items(), key=lambda item: item[1])][len(before) :]
    assert added == "board X O . [0] [1] [2] [3] [4] [5] [6] [7] [8] first public second raise [raise]".split()
    assert compact_words(games, tuple(after)) == ()
    assert len({*SPECIAL_TOKENS, *ACTIONS, *OBSERVATION_WORDS}) == 22


def test_a_long_game_gets_a_longer_context():
    game = "liars_dice(numdice=4,observation=compact)"
    model, tokenizer = build_tiny_model(0, games=[KUHN, game])
    assert model.config.max_position_embeddings == tokenizer.model_max_length >= needed_positions(game) > 128
    assert tokenizer.model_max_length % 64 == 0


# ------------------------------------------------------------------------------------------------------- warm start


def test_random_play_of_a_game_without_a_table_is_legal():
    game = "connect_four(observation=compact)"
    assert tabulate(game) is None
    dataset = random_play_dataset(game, 400, seed=0)
    boards = set()
    for prompt, completion in zip(dataset["prompt"], dataset["completion"], strict=True):
        cells = prompt[-1]["content"].split("board ")[1].split()
        assert cells[int(completion[0]["content"][1:-1])] == "."  # the column's uppermost cell
        boards.add(tuple(cells))
    assert len(boards) > 250  # distinct positions, not those that games pass most often
    assert dataset.to_list() == random_play_dataset(game, 400, seed=0).to_list()
    assert dataset.to_list() != random_play_dataset(game, 400, seed=1).to_list()


def test_free_text_is_drawn_by_the_games_own_sampler():
    game = "simple_negotiation(resources=2,observation=compact)"
    dataset = random_play_dataset(game, 300, seed=0)
    verbs = {completion[0]["content"].strip("[]").split(":")[0] for completion in dataset["completion"]}
    assert verbs == {"offer", "accept", "deny", "pass"}


def test_games_take_rows_in_turn_and_one_game_alone_is_as_before():
    games = [KUHN, "tic_tac_toe(observation=compact)"]
    rows = random_play_dataset(games, 10, seed=0)["prompt"]
    assert ["board" in row[-1]["content"] for row in rows] == [False, True] * 5
    assert random_play_dataset([KUHN], 20, seed=4).to_list() == random_play_dataset(KUHN, 20, seed=4).to_list()


def test_a_card_is_restated_and_a_cell_is_not():
    leduc, board = make_game("leduc_poker(observation=compact)"), make_game("tic_tac_toe(observation=compact)")
    for game in (leduc, board):
        game.reset(1)
    card = leduc.turns()[0].messages[-1]["content"].split()[3]
    assert completion_text(leduc.turns()[0], "raise") == f"{card} [raise]"
    assert completion_text(board.turns()[0], "4") == "[4]"


def test_the_warm_start_teaches_several_games_at_once(tmp_path):
    games = [KUHN, "leduc_poker(observation=compact)"]
    folder = save_tiny_model(tmp_path / "fresh", 0, games=games)
    warm_start(folder, games, tmp_path / "warm", seed=0, steps=60)
    model, tokenizer = (cls.from_pretrained(tmp_path / "warm") for cls in (AutoModelForCausalLM, AutoTokenizer))
    for game in games:
        legal = []
        for turn in tabulate(game).turns[:40]:
            ids = tokenizer.apply_chat_template(list(turn.messages), add_generation_prompt=True, return_dict=False)
            total = 0.0
            for action in turn.legal_actions:
                reply = [*tokenizer.encode(completion_text(turn, action)), tokenizer.eos_token_id]
                with torch.no_grad():
                    logits = model(torch.tensor([ids + reply])).logits[0].double()
                logprobs = torch.log_softmax(logits[len(ids) - 1 : -1], -1)
                total += logprobs[torch.arange(len(reply)), reply].sum().exp().item()
            legal.append(total)
        assert np.mean(legal) > 0.7, game


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("game", "message"),
    [
        ("tic_tac_toe", r"play tic_tac_toe\(observation=compact\), not tic_tac_toe"),
        ("simple_negotiation(observation=compact)", r"reads simple_negotiation\(resources=2"),
        ("simple_negotiation(resources=2,talk=shown,observation=compact)", "talk shows any word"),
        ("tictactoe", "did you mean 'tic_tac_toe'"),
    ],
)
def test_games_that_the_model_cannot_read(game, message):
    with pytest.raises(ValueError, match=message):
        build_tiny_model(0, games=[game])
    with pytest.raises(ValueError, match=message):
        check_embedded_games([KUHN, game], 64, False)


def test_a_game_without_a_declared_form(register_game):
    from toy_games import Pennies

    name = register_game("toy_pennies", Pennies)
    with pytest.raises(ValueError, match="unknown game of the embedded model 'toy_pennies'; allowed: kuhn_poker"):
        compact_form(name)


def test_replies_must_have_room_for_an_action():
    check_embedded_games([KUHN], 3, False)
    with pytest.raises(ValueError, match="max_completion_length is 2, but a legal reply .* up to 3 tokens"):
        check_embedded_games([KUHN], 2, False)
    with pytest.raises(ValueError, match="up to 9 tokens"):
        check_embedded_games([KUHN], 3, True)
    check_embedded_games(["simple_negotiation(resources=2,observation=compact)"], 13, False)
    with pytest.raises(ValueError, match="max_completion_length is 12"):
        check_embedded_games([KUHN, "simple_negotiation(resources=2,observation=compact)"], 12, False)
