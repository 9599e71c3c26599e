import pytest

from spiral_trl.players import prompts


def test_a_template_of_other_tokens_is_refused_before_training(make_trainer):
    with pytest.raises(ValueError, match="prompt_template='qwen3_base' is not for the tokenizer of"):
        make_trainer(prompt_template="qwen3_base")


def test_the_player_that_trains_writes_its_prompts_by_the_template(make_trainer, monkeypatch):
    marked = prompts.PromptTemplate("marked", "<|unk|> {{ messages[0].content }} <|assistant|> ")
    monkeypatch.setitem(prompts.PROMPT_TEMPLATES, "marked", marked)
    trainer = make_trainer(prompt_template="marked", max_steps=1)
    trainer.train()
    first, last = trainer._tokenizer.convert_tokens_to_ids(["<|unk|>", "<|assistant|>"])
    asked = {step.reply.prompt_ids for step in trainer.last_batch.samples}
    assert asked and all((ids[0], ids[-1]) == (first, last) for ids in asked)
