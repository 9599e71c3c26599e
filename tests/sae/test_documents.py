"""Documents: games as each seat saw them and texts as they are, token by token."""

import os

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from spiral_trl.errors import UsageError
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.players.language_model import LanguageModelPlayer
from spiral_trl.players.prompts import PromptTemplate
from spiral_trl.records import Ending, Episode, Reply, Step, Turn
from spiral_trl.rollout import play
from spiral_trl.sae.documents import (
    COLUMNS,
    Document,
    DocumentsTable,
    episode_documents,
    open_documents,
    text_documents,
)


KUHN = "kuhn_poker(observation=compact)"


def episode(*steps):
    """An episode of (seat, messages, reply) triples."""
    turns = tuple(
        Step(
            Turn(
                "made",
                0,
                0,
                index,
                seat,
                f"player {seat}",
                tuple({"role": role, "content": content} for role, content in messages),
                None,
            ),
            reply if isinstance(reply, Reply) else Reply(reply),
        )
        for index, (seat, messages, reply) in enumerate(steps)
    )
    return Episode("made", 0, ("a", "b"), ("player 0", "player 1"), turns, (0.0, 0.0), Ending.TERMINAL)


@pytest.fixture(scope="module")
def chatml(small_qwen):
    return AutoTokenizer.from_pretrained(small_qwen)


@pytest.fixture(scope="module")
def words():
    """A tokenizer of words with a beginning-of-sequence token that it does not add itself."""
    vocabulary = ["<s>", "</s>", "<unk>", *(f"w{number}" for number in range(20))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def text_of(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def ids_of(*numbers):
    return tuple(number + 3 for number in numbers)


def test_recorded_ids_are_read_as_they_are(talkative):
    model, tokenizer = talkative
    player = LanguageModelPlayer(model, tokenizer, max_new_tokens=4)
    episodes = play(KUHN, [player, player], range(60)).episodes()
    documents = list(episode_documents(episodes, tokenizer))
    steps = [(g, n, step) for g, game in enumerate(episodes) for n, step in enumerate(game.steps)]
    assert len(documents) == len(steps) and max(n for _, n, _ in steps) > 0
    for document, (group, number, step) in zip(documents, steps, strict=True):
        assert document.ids == step.reply.prompt_ids + step.reply.completion_ids
        assert document.reply == len(step.reply.prompt_ids) and document.cut == 0
        assert (document.group, document.step) == (group, number)
        assert (document.player, document.turn) == (step.turn.player, step.turn.index)


def test_no_token_of_a_seat_is_kept_twice(chatml):
    first = [("user", "You hold K")]
    then = [*first, ("assistant", "check"), ("user", "The other bets")]
    game = episode((0, first, "check"), (1, [("user", "You hold Q")], "bet"), (0, then, "call"))
    documents = list(episode_documents([game, game], chatml))
    assert [document.group for document in documents] == [0, 0, 0, 1, 1, 1]
    assert [document.player for document in documents] == [0, 1, 0] * 2
    assert [document.start for document in documents[:2]] == [0, 0]
    last = documents[2]
    # The second prompt of the seat begins with the first one and its reply
    opened = "<|im_start|>user\nYou hold K<|im_end|>\n<|im_start|>assistant\ncheck<|im_end|>"
    assert chatml.decode(last.ids[: last.start]) == opened == chatml.decode(documents[0].ids)
    kept = chatml.decode(last.ids[last.start :])
    assert kept == "\n<|im_start|>user\nThe other bets<|im_end|>\n<|im_start|>assistant\ncall<|im_end|>"
    assert chatml.decode(last.ids[last.reply :]) == "call<|im_end|>"
    # A new game starts afresh
    assert documents[3].start == 0


def test_a_beginning_is_shared_as_far_as_tokens_agree(chatml):
    one, two = [("user", "history: pass")], [("user", "history: pass bet")]
    before, after = episode_documents([episode((0, one, "bet"), (0, two, "fold"))], chatml)
    assert after.start == len(os.path.commonprefix([before.ids, after.ids])) > 3
    assert after.start < after.reply


def test_each_decision_is_kept_also_where_a_prompt_comes_again(chatml):
    chat = [("user", "Roll or hold?")]
    first, again, other = episode_documents([episode((0, chat, "roll"), (0, chat, "roll"), (0, chat, "hold"))], chatml)
    assert first.start == 0
    assert again.ids == first.ids and again.start == again.reply - 1
    assert other.start == other.reply - 1


def test_players_that_are_no_model_are_rendered(embedded):
    _, tokenizer = embedded
    episodes = play(KUHN, [RandomPlayer(), RandomPlayer()], range(5)).episodes()
    for document in episode_documents(episodes, tokenizer):
        step = episodes[document.group].steps[document.step]
        assert step.reply.prompt_ids is None
        shown = " ".join(step.turn.messages[-1]["content"].split())
        assert tokenizer.decode(document.ids[: document.reply]) == f"<|user|> {shown} <|assistant|>"
        assert tokenizer.decode(document.ids[document.reply :]) == f"{step.reply.text} <|end|>"


def test_a_reply_that_was_cut_does_not_end(chatml):
    chat = [("user", "?")]
    ended, cut = episode_documents(
        [episode((0, chat, "bet")), episode((0, chat, Reply("bet", finish_reason="length")))], chatml
    )
    assert ended.ids == (*cut.ids, chatml.eos_token_id)


@pytest.mark.parametrize("ids", [((5, 6), (7,)), ((5, 6), (10_000,))])
def test_ids_of_another_tokenizer_are_not_taken(chatml, ids):
    reply = Reply("check", prompt_ids=ids[0], completion_ids=ids[1])
    chat = [("user", "You hold K")]
    foreign, own = episode_documents([episode((0, chat, reply)), episode((0, chat, "check"))], chatml)
    assert foreign.ids == own.ids


def test_reasoning_that_the_prompt_opens_is_not_written_twice(chatml):
    template = PromptTemplate(
        "thinking", "{{ messages[-1].content }}{% if add_generation_prompt %}:<think>\n{% endif %}"
    )
    rendered = Reply("<think>\nhm</think>bet", finish_reason="length")
    completion = tuple(chatml.encode("hm</think>bet", add_special_tokens=False))
    recorded = Reply(rendered.text, prompt_ids=tuple(chatml.encode("?:<think>\n")), completion_ids=completion)
    chat = [("user", "?")]
    for document in episode_documents([episode((0, chat, rendered)), episode((0, chat, recorded))], chatml, template):
        assert chatml.decode(document.ids) == "?:<think>\nhm</think>bet"
        assert chatml.decode(document.ids[document.reply :]) == "hm</think>bet"


def test_what_the_template_takes_is_passed_on(chatml):
    template = PromptTemplate("loud", "{{ messages[-1].content }}{{ tail }}")
    (document,) = episode_documents([episode((0, [("user", "a")], "b"))], chatml, template, {"tail": "!!"})
    assert chatml.decode(document.ids[: document.reply]) == "a!!"


def test_long_documents_are_cut_at_the_end_and_say_so(chatml):
    game = episode((0, [("user", "You hold K")], "check"), (0, [("user", "You hold K, bet")], "call"))
    whole = list(episode_documents([game], chatml))
    for limit in (whole[0].reply + 1, whole[0].reply - 2, whole[1].start - 1, 1000):
        for document, full in zip(episode_documents([game], chatml, max_tokens=limit), whole, strict=True):
            assert document.ids == full.ids[:limit]
            assert document.cut == max(0, len(full.ids) - limit)
            assert document.reply == full.reply
            assert document.start == min(full.start, limit)


def test_templates_that_cannot_be_used_are_refused(words, talkative):
    game = episode((0, [("user", text_of(1))], "w2"))
    with pytest.raises(UsageError, match="chta.*did you mean 'chat'"):
        episode_documents([game], words, "chta")
    with pytest.raises(UsageError, match="has no chat template"):
        list(episode_documents([game], words))
    with pytest.raises(UsageError, match="max_tokens=0"):
        episode_documents([game], words, max_tokens=0)
    # Recorded ids need no template
    recorded = episode((0, [("user", "w1")], Reply("w2", prompt_ids=ids_of(1), completion_ids=ids_of(2))))
    (document,) = episode_documents([recorded], words)
    assert document.ids == ids_of(1, 2)


def test_texts_become_documents(words):
    rows = [{"text": text_of(1, 2, 3), "n": 1}, {"text": "", "n": 2}, {"text": None, "n": 3}, {"text": text_of(4)}]
    documents = list(text_documents(rows, words))
    assert documents == [Document(ids_of(1, 2, 3), 0), Document(ids_of(4), 3)]
    assert list(text_documents([text_of(1, 2, 3), "", "", text_of(4)], words)) == documents


def test_long_texts_become_several_documents_of_one_group(words):
    long = text_of(*range(10))
    documents = list(text_documents([text_of(0), long], words, max_tokens=4))
    assert [document.group for document in documents] == [0, 1, 1, 1]
    assert [document.ids for document in documents[1:]] == [ids_of(0, 1, 2, 3), ids_of(4, 5, 6, 7), ids_of(8, 9)]
    opened = list(text_documents([long], words, max_tokens=4, bos=True))
    assert [document.ids for document in opened] == [
        (0, *ids_of(*range(first, min(first + 3, 10)))) for first in (0, 3, 6, 9)
    ]


def test_the_first_position_may_be_dropped(words):
    for bos in (False, True):
        documents = list(text_documents([text_of(*range(6))], words, max_tokens=3, bos=bos, drop_first=True))
        assert all(document.start == 1 for document in documents)


def test_a_beginning_of_sequence_is_added_where_the_tokenizer_adds_it(words):
    adding = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, bos_token="<s>", unk_token="<unk>")
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert next(text_documents([text_of(1)], adding)).ids == (0, *ids_of(1))
    assert next(text_documents([text_of(1)], adding, bos=False)).ids == ids_of(1)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    assert next(text_documents([text_of(1)], adding)).ids == ids_of(1)


def test_streams_are_read_as_they_come(words):
    from datasets import IterableDataset

    taken = []

    def rows():
        for number in range(10**9):
            taken.append(number)
            yield {"text": text_of(number % 20)}

    documents = text_documents(IterableDataset.from_generator(rows), words)
    assert [next(documents).group for _ in range(3)] == [0, 1, 2]
    assert len(taken) < 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(column="texts"), "column='texts', but row 1 has the columns text, n; did you mean 'text'"),
        (dict(column="n"), "column='n' of row 1 holds int, not a text"),
        (dict(max_tokens=0), "max_tokens=0, but it must be at least 1"),
        (dict(max_tokens=1, bos=True), "max_tokens=1 leaves no room for text"),
    ],
)
def test_what_holds_no_text_is_refused(words, arguments, message):
    with pytest.raises(UsageError, match=message):
        list(text_documents([text_of(1), {"text": text_of(1), "n": 5}], words, **arguments))


def test_a_tokenizer_without_a_beginning_of_sequence_is_refused_one(embedded):
    with pytest.raises(UsageError, match="bos=True, but the tokenizer has no"):
        text_documents(["player"], embedded[1], bos=True)
    assert next(text_documents(["player 0"], embedded[1])).reply is None


def test_the_documents_table_comes_back_as_columns(tmp_path):
    table = DocumentsTable()
    assert table.add(Document((1, 2, 3), 7, start=1, reply=2, step=3, player=1, turn=5, cut=4)) == 0
    assert table.add(Document((1,), 8)) == 1
    table.write(tmp_path)
    columns = open_documents(tmp_path)
    assert tuple(columns) == COLUMNS
    assert {name: values.tolist() for name, values in columns.items()} == {
        "document": [0, 1],
        "group": [7, 8],
        "step": [3, -1],
        "player": [1, -1],
        "turn": [5, -1],
        "start": [1, 0],
        "reply": [2, -1],
        "length": [3, 1],
        "cut": [4, 0],
    }
    assert all(values.dtype == np.int32 for values in columns.values())


def test_a_documents_table_that_cannot_be_read_is_refused(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    with pytest.raises(UsageError, match=r"has no documents.parquet: its collection was not finished"):
        open_documents(tmp_path)
    (tmp_path / "documents.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="documents.parquet cannot be read"):
        open_documents(tmp_path)
    parquet.write_table(pa.table({"document": [1]}), tmp_path / "documents.parquet")
    with pytest.raises(UsageError, match="it lacks the columns group, step"):
        open_documents(tmp_path)
