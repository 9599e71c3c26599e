import os
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spiral_trl.games import make_game
from spiral_trl.players.language_model import LanguageModelPlayer, check_chat_template
from spiral_trl.players.prompts import PROMPT_TEMPLATES, PromptTemplate, find_prompt_template
from spiral_trl.rollout import play


GOLDEN = Path(__file__).parent / "prompts"
OWN = ["llama_instruct", "qwen3_base", "r1_distill"]
BOS = {"r1_distill": "<｜begin▁of▁sentence｜>", "llama_instruct": "<|begin_of_text|>"}
CHAT = (
    {"role": "system", "content": "You are seat 1 of two."},
    {"role": "user", "content": "Your card is J.\nChoose [check] or [bet]."},
)


def small_tokenizer(template, **special):
    """Single characters are not told apart; markers of the template are tokens."""
    words = {word: i for i, word in enumerate(("<pad>", "<unk>", "<end>", *PROMPT_TEMPLATES[template].markers))}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=list(PROMPT_TEMPLATES[template].markers),
        clean_up_tokenization_spaces=False,
        **special,
    )


def tokenizer_for(template):
    if template in BOS:
        return small_tokenizer(template, bos_token=BOS[template])
    tokenizer = small_tokenizer(template)
    if template == "chat":
        tokenizer.chat_template = (
            "{% for message in messages %}({{ message.role }}) {{ message.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}(assistant){% endif %}"
        )
    return tokenizer


def kuhn_turn(observation):
    """A turn of the second hand of two, so that the forms of the observation differ."""
    game = make_game(f"kuhn_poker(rounds=2,observation={observation})")
    game.reset(3)
    for action in ("bet", "fold", "check"):
        game.step({game.turns()[0].player: action})
    return game.turns()[0]


def rendered(template):
    """The prompts of a template for a Kuhn turn in two forms and for a chat of two messages, as one text."""
    tokenizer, parts = tokenizer_for(template), []
    asked = {
        "kuhn_poker(rounds=2)": kuhn_turn("words").messages,
        "kuhn_poker(rounds=2,observation=latest)": kuhn_turn("latest").messages,
        "a chat of two messages": CHAT,
        "a chat with an earlier reply": (CHAT[1], {"role": "assistant", "content": "[check]"}, CHAT[1]),
    }
    for name, messages in asked.items():
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **PROMPT_TEMPLATES[template].arguments()
        )
        parts.append(f"======== {name}\n{text}|\n")
    return "".join(parts)


@pytest.mark.parametrize("template", PROMPT_TEMPLATES)
def test_golden_prompts(template):
    """A bar stands after the last character. Set UPDATE_PROMPTS=1 to write them anew, then read the difference."""
    path = GOLDEN / f"{template}.txt"
    if os.environ.get("UPDATE_PROMPTS"):
        path.write_text(rendered(template), encoding="utf-8")
    assert rendered(template) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("template", OWN)
def test_a_template_needs_no_chat_template_and_says_what_it_must(template):
    tokenizer = tokenizer_for(template)
    assert tokenizer.chat_template is None
    find_prompt_template(template).check(tokenizer)
    observation = kuhn_turn("words").messages[0]["content"]
    text = tokenizer.apply_chat_template(
        list(kuhn_turn("words").messages), tokenize=False, **PROMPT_TEMPLATES[template].arguments()
    )
    before, after = text.split(observation)
    assert "zero-sum game of two players" in before and "step by step" in after and "\\boxed{}" in after
    assert before.startswith(BOS.get(template, "<|im_start|>user\n"))
    closed = list(PROMPT_TEMPLATES[template].markers)[-1] if template != "r1_distill" else "<｜User｜>"
    assert text.count(closed) == 1
    # Content that looks like a template stays content
    odd = [{"role": "user", "content": "{{ bos_token }} {% raw %} {}"}]
    assert "{{ bos_token }} {% raw %} {}" in tokenizer.apply_chat_template(
        odd, tokenize=False, **PROMPT_TEMPLATES[template].arguments()
    )


@pytest.mark.parametrize(("template", "opened"), [("chat", ""), ("qwen3_base", ""), ("r1_distill", "<think>\n")])
def test_where_the_prompt_opens_reasoning(template, opened):
    assert find_prompt_template(template).opened_reasoning(tokenizer_for(template)) == opened


def test_a_tokenizers_own_template_may_open_reasoning_too():
    tokenizer = tokenizer_for("chat")
    tokenizer.chat_template = "{% if off %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    chat = find_prompt_template("chat")
    assert chat.opened_reasoning(tokenizer) == "<think>\n"
    assert chat.opened_reasoning(tokenizer, off=True) == ""


@pytest.mark.parametrize("template", OWN)
def test_another_models_tokenizer_is_refused(template):
    other = OWN[OWN.index(template) - 1]
    with pytest.raises(ValueError, match=f"prompt_template='{template}' is not for the tokenizer of") as error:
        check_chat_template(tokenizer_for(other), template)
    assert "which has no token" in str(error.value) and "\n" not in str(error.value)


def test_unknown_names_and_missing_templates():
    with pytest.raises(ValueError, match="unknown prompt_template 'qwen'; allowed: chat, .*did you mean 'qwen3_base'"):
        find_prompt_template("qwen")
    mine = PromptTemplate("mine", "{{ messages[0].content }}")
    assert find_prompt_template(mine) is mine
    with pytest.raises(ValueError, match=r"no chat template.*choose a prompt_template \(qwen3_base, r1_distill"):
        check_chat_template(tokenizer_for("qwen3_base"))


# --------------------------------------------------------------------------------------------------------- the player


def player_that_says(texts, talkative, **kwargs):
    """A player whose engine answers with the given texts, token by token of the embedded model's vocabulary."""
    model, tokenizer = talkative
    words = tokenizer.get_vocab()

    def engine(prompts):
        chosen = [texts[i % len(texts)].split() for i in range(len(prompts))]
        return [[words[word] for word in said] + [tokenizer.eos_token_id] for said in chosen], None

    return LanguageModelPlayer(model, tokenizer, engine=engine, max_new_tokens=8, **kwargs)


OPENS = PromptTemplate("opens", "{{ messages[0].content }}{% if add_generation_prompt %} <think>\n{% endif %}")


@pytest.fixture
def thinker(build_talkative):
    """The embedded model with words for reasoning."""
    from tokenizers import AddedToken

    model, tokenizer = build_talkative()
    tokenizer.add_tokens([AddedToken("</think>", normalized=False, special=False)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer


def test_reasoning_that_the_prompt_opened_must_be_closed(thinker):
    game = "kuhn_poker(observation=compact)"
    (unclosed,) = play(game, [player_that_says(["[bet]"], thinker, prompt_template=OPENS)] * 2, [1]).episodes()
    assert unclosed.ending.value == "illegal"
    assert unclosed.steps[0].reply.text == "<think>\n[bet]"
    assert unclosed.steps[0].reply.error == "the reasoning was not finished: <think> has no </think>"
    player = player_that_says(["[check] </think> [bet]"], thinker, prompt_template=OPENS)
    (closed,) = play(game, [player] * 2, [1], max_turns=1).episodes()
    assert closed.steps[0].reply.action == "bet"
    assert closed.steps[0].reply.completion_ids == tuple(
        thinker[1].convert_tokens_to_ids(["[check]", "</think>", "[bet]", "<|end|>"])
    )
    # Without the template the same words are no reasoning
    (plain,) = play(game, [player_that_says(["[bet]"], thinker)] * 2, [1], max_turns=1).episodes()
    assert plain.steps[0].reply.action == "bet" and plain.steps[0].reply.text == "[bet]"


def test_the_prompt_is_that_of_the_template_and_its_marker_ends_a_reply(build_talkative):
    model, tokenizer = build_talkative()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    player = LanguageModelPlayer(model, tokenizer, prompt_template="qwen3_base", max_new_tokens=3)
    turn = replace(kuhn_turn("words"), messages=({"role": "user", "content": "player 0 card J history none"},))
    ids = list(player.prompt_ids(turn))
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end)) == (2, 1) and ids[0] == start
    text = tokenizer.apply_chat_template(
        list(turn.messages), tokenize=False, add_generation_prompt=True, **PROMPT_TEMPLATES["qwen3_base"].arguments()
    )
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert player.eos_token_ids == {tokenizer.eos_token_id, end}
    assert LanguageModelPlayer(model, tokenizer).eos_token_ids == {tokenizer.eos_token_id}


def test_training_takes_the_template_by_name(tmp_path):
    from spiral_trl import SelfPlayConfig

    given = dict(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    assert SelfPlayConfig(**given).prompt_template == "chat"
    with pytest.raises(ValueError, match="unknown prompt_template 'llama'; .*did you mean 'llama_instruct'"):
        SelfPlayConfig(**given, prompt_template="llama")
