"""Collection: the codes are those of each document read alone, whatever the batches, the shards and the interruptions."""

import json
import logging
import resource
import shutil

import numpy as np
import pytest
import torch

from spiral_trl.errors import UsageError
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.players.language_model import LanguageModelPlayer
from spiral_trl.rollout import play
from spiral_trl.sae import reader
from spiral_trl.sae.activations import read_residuals
from spiral_trl.sae.collect import collect, model_fingerprint
from spiral_trl.sae.documents import Document, episode_documents, open_documents
from spiral_trl.sae.reader import _plan
from spiral_trl.sae.store import check_same_tokens, open_store


KUHN = "kuhn_poker(observation=compact)"


@pytest.fixture
def gather(tmp_path):
    """`gather(model, dictionaries, documents, name=..., **settings)`: collects into a folder of that name."""

    def run(model, dictionaries, documents, name="store", **settings):
        arguments = {"model_name": "made", "source": {"kind": "made"}, "value_dtype": "float32", "progress": False}
        return collect(model, dictionaries, documents, tmp_path / name, **{**arguments, **settings})

    return run


def documents_of(seed, count=30, longest=20, vocabulary=60):
    """Random documents, some twice, some the beginning of another, some with tokens that are read and not kept."""
    random = np.random.default_rng(seed)
    documents = []
    for group in range(count):
        ids = tuple(random.integers(1, vocabulary, random.integers(2, longest)).tolist())
        start = int(random.integers(0, len(ids)))
        documents.append(Document(ids, group, reply=len(ids) // 2, step=0, player=group % 2, turn=3))
        if group % 3 == 0:
            documents.append(Document(ids[: len(ids) // 2], group, step=1))
        if group % 4 == 0:
            documents.append(Document(ids, group, start=start, reply=start, step=2, player=1, turn=7))
        if group % 5 == 0:
            documents.append(Document((*ids, 5, 6), group, start=len(ids), reply=len(ids) + 1, step=3))
        if group % 7 == 0:
            documents.append(Document(ids, group, start=len(ids), step=4))
    return documents


def alone(model, dictionaries, documents):
    """Token records, dense codes and streams of each layer, from each document by itself, without padding."""
    records, codes, streams = [], {layer: [] for layer in dictionaries}, {layer: [] for layer in dictionaries}
    for number, document in enumerate(documents):
        if document.start == len(document.ids):
            continue
        inputs = {"input_ids": torch.tensor([document.ids])}
        found = read_residuals(model, inputs, list(dictionaries))
        for position in range(document.start, len(document.ids)):
            reply = document.reply is not None and position >= document.reply
            records.append(
                (document.ids[position], document.group, number, position, document.player, document.turn, reply)
            )
        for layer, dictionary in dictionaries.items():
            stream = found[layer][0, document.start :]
            streams[layer].append(stream.double().numpy())
            codes[layer].append(dictionary.encode(stream).numpy())
    return (
        records,
        {layer: np.concatenate(parts) for layer, parts in codes.items()},
        {layer: np.concatenate(parts) for layer, parts in streams.items()},
    )


def dense(store, layer):
    rows = store.rows(layer)
    full = np.zeros((store.num_tokens, store.num_features(layer)), np.float32)
    full[np.repeat(np.arange(store.num_tokens), np.diff(rows.indptr)), rows.feature] = rows.value
    return full


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_codes_are_those_of_each_document_alone(random_model, make_dictionaries, gather):
    dictionaries = make_dictionaries(random_model, layers=[0, 2, 3])
    documents = documents_of(0)
    store = gather(random_model, dictionaries, documents, shard_tokens=97, batch_tokens=70)
    records, codes, _ = alone(random_model, dictionaries, documents)
    assert store.layers == (0, 2, 3) and len(store.shards) > 3
    assert all(shard.num_tokens >= 97 for shard in store.shards[:-1])
    assert store.tokens.tolist() == records
    for layer, expected in codes.items():
        assert (expected > 0).mean() > 0.2
        np.testing.assert_allclose(dense(store, layer), expected, atol=2e-5)


@pytest.mark.parametrize(("shard_tokens", "batch_tokens"), [(1, 1), (40, 10_000), (1 << 16, 25), (1 << 16, 10_000)])
def test_batches_and_shards_do_not_matter(build_model, make_dictionaries, gather, shard_tokens, batch_tokens):
    model = build_model("gpt2")
    dictionaries = make_dictionaries(model)
    documents = documents_of(1, count=12)
    records, codes, _ = alone(model, dictionaries, documents)
    store = gather(model, dictionaries, documents, shard_tokens=shard_tokens, batch_tokens=batch_tokens)
    assert store.tokens.tolist() == records
    for layer, expected in codes.items():
        np.testing.assert_allclose(dense(store, layer), expected, atol=2e-5)
    quality = json.loads((store.folder / "quality.json").read_text())
    assert quality["1"]["l0"] == pytest.approx((codes[1] > 0).sum(1).mean())


def kuhn_games(talkative, count):
    """A model against a player that is none and often plays twice in a game."""
    model, tokenizer = talkative
    player = LanguageModelPlayer(model, tokenizer, max_new_tokens=4)
    return play(KUHN, [RandomPlayer(), player], range(count)).episodes()


def test_a_shared_beginning_has_equal_activations(talkative):
    model, tokenizer = talkative
    compared, before = 0, {}
    for document in episode_documents(kuhn_games(talkative, 80), tokenizer):
        streams = read_residuals(model, {"input_ids": torch.tensor([document.ids])}, [0, 1, 2])
        key = (document.group, document.player)
        if key in before:
            assert document.start > 3
            for layer, stream in before[key].items():
                assert torch.allclose(stream[:, : document.start], streams[layer][:, : document.start], atol=1e-6)
            compared += 1
        before[key] = streams
    assert compared > 3


def test_each_decision_of_games_is_in_the_store_once(talkative, make_dictionaries, gather):
    model, tokenizer = talkative
    episodes = kuhn_games(talkative, 50)
    store = gather(model, make_dictionaries(model), episode_documents(episodes, tokenizer), shard_tokens=100)
    table = open_documents(store.folder)
    assert table["document"].tolist() == list(range(sum(len(episode.steps) for episode in episodes)))
    tokens = store.tokens
    decided = tokens[tokens["position"] == table["reply"][tokens["document"]] - 1]
    assert decided["document"].tolist() == table["document"].tolist()
    for token in decided:
        turn = episodes[token["group"]].steps[table["step"][token["document"]]].turn
        assert (token["player"], token["turn"]) == (turn.player, turn.index)
        assert tokenizer.decode(token["token"]) == "<|assistant|>" and not token["reply"]
    # The tokens that players wrote are marked
    assert tokens["reply"].sum() == (table["length"] - table["reply"]).sum()
    # A card is shown once in a game to each seat that is asked
    cards = tokens[np.isin(tokens["token"], tokenizer.convert_tokens_to_ids(["J", "Q", "K"])) & ~tokens["reply"]]
    assert len(cards) == len({(group, turn.player) for group, turn in turns_of(episodes)})


def turns_of(episodes):
    return [(group, step.turn) for group, episode in enumerate(episodes) for step in episode.steps]


def test_what_begins_another_sequence_is_read_off_it():
    documents = [
        Document((1, 2, 3), 0),
        Document((1, 2, 3, 4, 5), 1, start=2),
        Document((1, 2), 2, start=1),
        Document((1, 3), 3),
        Document((1, 2, 3, 4, 5), 4, start=4),
        Document((1,), 5),
    ]
    plan = _plan(documents)
    assert plan.sequences == [(1, 2, 3, 4, 5), (1, 3)]
    assert plan.starts == [0, 0] and plan.rows == 7
    assert plan.index.tolist() == [0, 1, 2, 2, 3, 4, 1, 5, 6, 4, 0]


def test_a_sequence_is_computed_once(build_model, make_dictionaries, gather, monkeypatch):
    model = build_model("qwen3")
    seen = []
    monkeypatch.setattr(
        reader, "read_residuals", lambda *args: seen.append(args[1]["input_ids"].shape) or read_residuals(*args)
    )
    ids = tuple(range(1, 13))
    documents = [Document(ids[:length], 0) for length in range(1, 13)] * 3
    store = gather(model, make_dictionaries(model), documents)
    assert seen == [(1, 12)] and store.num_tokens == 3 * 78


def test_two_models_give_equal_tokens(build_model, make_dictionaries, gather):
    before, after = build_model("gpt_neox"), build_model("gpt_neox", seed=1)
    dictionaries, documents = make_dictionaries(before), documents_of(2)
    one = gather(before, dictionaries, iter(documents), name="before", shard_tokens=60)
    two = gather(after, dictionaries, iter(documents), name="after", shard_tokens=60)
    check_same_tokens(one, two)
    assert [shard.num_tokens for shard in one.shards] == [shard.num_tokens for shard in two.shards]
    assert one.about["documents_fingerprint"] == two.about["documents_fingerprint"]
    assert one.about["model_fingerprint"] != two.about["model_fingerprint"]
    for name, column in open_documents(one.folder).items():
        np.testing.assert_array_equal(column, open_documents(two.folder)[name])
    assert not np.allclose(dense(one, 2), dense(two, 2), atol=1e-2)


def test_the_store_says_what_it_is_about(build_model, make_dictionaries, gather):
    model = build_model("qwen3")
    documents = documents_of(3, count=5)
    about = gather(model, make_dictionaries(model, layers=[1]), documents).about
    assert about["model"] == "made" and about["model_fingerprint"] == model_fingerprint(model)
    assert about["source"] == {"kind": "made"} and about["value_dtype"] == "float32"
    assert about["layers"] == {"1": {"num_features": 48, "dictionary": "made 1", "fingerprint": "0-1"}}
    assert about["documents"] == len(documents)
    assert about["tokens"] == sum(len(document.ids) - document.start for document in documents)


@pytest.mark.parametrize("value_dtype", ["float16", "float32"])
def test_values_are_kept_as_asked(build_model, make_dictionaries, gather, value_dtype):
    model = build_model("qwen3")
    store = gather(model, make_dictionaries(model), documents_of(0, count=3), value_dtype=value_dtype)
    assert store.rows(0).value.dtype == value_dtype


class Stop:
    """Stands for a dictionary that is killed, as its process is, at one of its calls."""

    def __init__(self, dictionary, at):
        self.dictionary, self.left = dictionary, at

    def __getattr__(self, name):
        return getattr(self.dictionary, name)

    def encode(self, stream):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.dictionary.encode(stream)


@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_a_run_that_was_killed_goes_on_to_the_same_store(build_model, make_dictionaries, gather, tmp_path, at):
    model = build_model("gpt2")
    dictionaries, documents = make_dictionaries(model), documents_of(4)
    settings = dict(shard_tokens=80, batch_tokens=50)
    whole = gather(model, dictionaries, documents, name="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        gather(model, {**dictionaries, 2: Stop(dictionaries[2], at)}, documents, name="killed", **settings)
    finished = len(list((tmp_path / "killed" / "shards").glob("?????")))
    assert finished < len(whole.shards) and (at < 9 or finished > 1)
    if finished:
        assert len(open_store(tmp_path / "killed").shards) == finished
        with pytest.raises(UsageError, match="was not finished"):
            open_documents(tmp_path / "killed")
    # A process that dies while it writes leaves this
    (tmp_path / "killed" / "shards" / f"{finished:05d}.partial").mkdir()
    calls = dictionaries[0].calls
    gather(model, dictionaries, documents, name="killed", **settings)
    per_shard = calls // (len(whole.shards) + finished + 1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert dictionaries[0].calls - calls >= per_shard


def test_a_finished_store_is_not_computed_again(build_model, make_dictionaries, gather):
    model = build_model("gpt2")
    dictionaries, documents = make_dictionaries(model), documents_of(4)
    store = gather(model, dictionaries, documents, shard_tokens=80)
    before = contents(store.folder)
    for dictionary in dictionaries.values():
        dictionary.encode = None
    # The name of a model is not what makes it another
    gather(model, dictionaries, documents, shard_tokens=80, batch_tokens=7)
    assert contents(store.folder) == before


def test_a_shard_that_was_removed_is_computed_again(build_model, make_dictionaries, gather):
    model = build_model("gpt2")
    dictionaries, documents = make_dictionaries(model), documents_of(4)
    store = gather(model, dictionaries, documents, shard_tokens=80)
    before = contents(store.folder)
    shutil.rmtree(store.shards[1].folder)
    gather(model, dictionaries, documents, shard_tokens=80)
    assert contents(store.folder) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(source={"kind": "other"}), 'source {"kind": "made"}, here {"kind": "other"}'),
        (dict(value_dtype="float16"), 'value_dtype "float32", here "float16"'),
        (dict(shard_tokens=81), "shard_tokens 80, here 81"),
        (dict(model=1), "the weights of made, and those of made are others"),
        (dict(dictionaries=dict(seed=1)), r"the dictionaries made 0 \(layer 0\), .* are others"),
        (dict(dictionaries=dict(layers=[0, 1])), r"the dictionaries made 0 \(layer 0\), .* are others"),
        (dict(resume=False), "holds codes already"),
        (dict(documents=5), "holds codes of other documents than were given"),
        (dict(documents=slice(1, None)), "holds codes of other documents than were given"),
        (dict(documents=slice(20)), "holds codes of more documents than were given"),
    ],
)
def test_a_store_of_other_settings_is_refused(build_model, make_dictionaries, gather, settings, message):
    model = build_model("gpt2")
    documents = documents_of(4)
    store = gather(model, make_dictionaries(model), documents, shard_tokens=80)
    before = contents(store.folder)
    settings = {"shard_tokens": 80, **settings}
    model = build_model("gpt2", settings.pop("model", 0))
    dictionaries = make_dictionaries(model, **settings.pop("dictionaries", {}))
    other = settings.pop("documents", slice(None))
    documents = documents[other] if isinstance(other, slice) else documents_of(other)
    if documents[0] == documents_of(4)[0]:
        # The first 20 documents fill shards of their own
        kept = np.cumsum([len(document.ids) - document.start for document in documents])
        documents = documents if len(documents) > 20 else documents[: np.searchsorted(kept, 80) + 1]
    with pytest.raises(UsageError, match=message) as raised:
        gather(model, dictionaries, documents, **settings)
    assert "\n" not in str(raised.value)
    assert contents(store.folder) == before


def test_settings_may_change_while_there_is_no_shard(build_model, make_dictionaries, gather):
    model = build_model("gpt2")
    loud = make_dictionaries(model)
    for dictionary in loud.values():
        dictionary.weights *= 1e6
    with pytest.raises(UsageError, match="largest that half precision holds; collect with value_dtype=float32"):
        gather(model, loud, documents_of(4), value_dtype="float16")
    assert gather(model, loud, documents_of(4)).num_tokens > 100


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("shards/00001/layer_01.value.npy", "00001 is corrupt: layer_01.value.npy cannot be read"),
        ("shards/00001/shard.json", "00001 is corrupt: there is no shard.json"),
        ("quality/00001.npz", r"quality/00001.npz cannot be read .* remove .*00001 to go on"),
    ],
)
def test_a_corrupt_shard_is_named_before_it_is_gone_on_with(build_model, make_dictionaries, gather, spoil, message):
    model = build_model("gpt2")
    dictionaries, documents = make_dictionaries(model), documents_of(4)
    store = gather(model, dictionaries, documents, shard_tokens=80)
    before = contents(store.folder)
    (store.folder / spoil).unlink()
    with pytest.raises(UsageError, match=message):
        gather(model, dictionaries, documents, shard_tokens=80)
    # As the message says
    shutil.rmtree(store.folder / "shards" / "00001")
    gather(model, dictionaries, documents, shard_tokens=80)
    assert contents(store.folder) == before


@pytest.fixture
def small_files():
    """`small_files(size)`: files cannot grow beyond it, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_takes_no_more_keeps_the_earlier_shards(
    build_model, make_dictionaries, gather, tmp_path, small_files
):
    model = build_model("gpt2")
    dictionaries = make_dictionaries(model, num_features=256)
    settings = dict(shard_tokens=30)
    # Shards of up to 49 tokens, then one of 60
    documents = [*documents_of(5, count=4), Document(tuple(range(60)), 99), *documents_of(6, count=9)]
    whole = gather(model, dictionaries, documents, name="whole", **settings)
    sizes = [max(path.stat().st_size for path in shard.folder.iterdir()) for shard in whole.shards]
    first_large = [shard.num_tokens for shard in whole.shards].index(max(shard.num_tokens for shard in whole.shards))
    limit = sizes[first_large] - 1
    assert first_large > 0 and max(sizes[:first_large]) < limit
    small_files(limit)
    with pytest.raises(UsageError, match=rf"cannot be written to: .*; {first_large} whole shards are kept") as raised:
        gather(model, dictionaries, documents, name="full", **settings)
    assert "\n" not in str(raised.value)
    small_files(resource.RLIM_INFINITY)
    assert [shard.num_tokens for shard in open_store(tmp_path / "full").shards] == [
        shard.num_tokens for shard in whole.shards[:first_large]
    ]
    assert not list((tmp_path / "full").rglob("*.partial"))
    gather(model, dictionaries, documents, name="full", **settings)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_documents_beyond_the_positions_are_cut_and_counted(build_model, make_dictionaries, gather, caplog):
    model = build_model("gpt2")
    long = tuple(np.arange(100) % 59 + 1)
    documents = [Document(long, 0), Document((1, 2), 1), Document(long[:70], 2, start=66, reply=68, cut=3)]
    with caplog.at_level(logging.WARNING):
        store = gather(model, make_dictionaries(model), documents)
    assert store.num_tokens == 66
    assert (store.about["documents_cut"], store.about["tokens_cut"]) == (2, 36 + 6 + 3)
    assert "2 of 3 documents were longer than there is room for" in caplog.text and "45 tokens" in caplog.text
    table = open_documents(store.folder)
    assert table["length"].tolist() == [64, 2, 64] and table["cut"].tolist() == [36, 0, 9]
    assert table["start"].tolist() == [0, 0, 64]
    records, codes, _ = alone(model, make_dictionaries(model), [Document(long[:64], 0), Document((1, 2), 1)])
    assert store.tokens["token"].tolist() == [record[0] for record in records]
    np.testing.assert_allclose(dense(store, 2), codes[2], atol=2e-5)


def test_quality_is_that_of_the_kept_tokens(random_model, make_dictionaries, gather):
    dictionaries = make_dictionaries(random_model)
    # Two that never fire
    for dictionary in dictionaries.values():
        dictionary.weights[:, :2] = 0
    documents = documents_of(7)
    store = gather(random_model, dictionaries, documents, shard_tokens=90, batch_tokens=60)
    quality = json.loads((store.folder / "quality.json").read_text())
    _, codes, streams = alone(random_model, dictionaries, documents)
    assert list(quality) == ["0", "1", "2", "3"]
    for layer, dictionary in dictionaries.items():
        missed = streams[layer] - dictionary.decode(torch.tensor(codes[layer])).double().numpy()
        expected = (missed**2).sum() / ((streams[layer] - streams[layer].mean(0)) ** 2).sum()
        assert quality[str(layer)]["unexplained_variance"] == pytest.approx(expected, rel=1e-5)
        assert quality[str(layer)]["l0"] == pytest.approx((codes[layer] > 0).sum() / len(codes[layer]))
        dead = (codes[layer] == 0).all(0)
        assert dead[:2].all() and quality[str(layer)]["dead"] == pytest.approx(dead.sum() / 48)


def test_large_dictionaries_are_decoded_on_some_tokens(build_model, make_dictionaries, gather, monkeypatch):
    model = build_model("gpt2")
    dictionaries, documents = make_dictionaries(model, layers=[2]), documents_of(8, count=300)
    exact = gather(model, dictionaries, documents, name="exact")
    monkeypatch.setattr(reader, "_SMALL", 0)
    # Blocks of a few tokens, too
    monkeypatch.setattr(reader, "_BLOCK", 48 * 16)
    some = gather(model, dictionaries, documents, name="some")
    assert contents(some.folder / "shards") == contents(exact.folder / "shards")
    one, two = (json.loads((store.folder / "quality.json").read_text())["2"] for store in (exact, some))
    assert (two["l0"], two["dead"]) == (one["l0"], one["dead"])
    assert two["unexplained_variance"] != one["unexplained_variance"]
    assert two["unexplained_variance"] == pytest.approx(one["unexplained_variance"], rel=0.1)


def test_a_stream_that_does_not_vary_has_no_unexplained_variance(build_model, make_dictionaries, gather):
    store = gather(build_model("qwen3"), make_dictionaries(build_model("qwen3"), layers=[0]), [Document((3,), 0)] * 9)
    assert json.loads((store.folder / "quality.json").read_text())["0"]["unexplained_variance"] is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (dict(layers=[9]), "layer 9 was asked for, but the model has layers 0"),
        (dict(width=25), "made 1 is a dictionary of streams of width 25, but the model's have 24"),
        (dict(key=2), "made 1 is a dictionary of layer 1, not of layer 2"),
        (dict(none=True), "no dictionaries were given"),
        (dict(documents=[]), "there is no token to keep"),
        (dict(documents=[Document((1, 2), 0, start=2), Document((), 1)]), "there is no token to keep"),
        (dict(documents=[Document((1, 60), 4)]), "a document of group 4 has the token 60, but the model has 60"),
        (dict(shard_tokens=0), "shard_tokens=0, but it must be at least 1"),
        (dict(batch_tokens=0), "batch_tokens=0, but it must be at least 1"),
        (dict(value_dtype="bfloat16"), "value_dtype='bfloat16', but it must be float16 or float32"),
    ],
)
def test_what_does_not_fit_is_refused(build_model, make_dictionaries, gather, spoil, message):
    model = build_model("qwen3")
    spoil = dict(spoil)
    dictionaries = make_dictionaries(model, layers=spoil.pop("layers", [1]))
    if "width" in spoil:
        dictionaries[1].width = spoil.pop("width")
    if "key" in spoil:
        dictionaries = {spoil.pop("key"): dictionaries[1]}
    if spoil.pop("none", False):
        dictionaries = {}
    with pytest.raises(UsageError, match=message) as raised:
        gather(model, dictionaries, spoil.pop("documents", documents_of(0, count=2)), **spoil)
    assert "\n" not in str(raised.value)


def test_a_stream_that_is_not_finite_is_refused(build_model, make_dictionaries, gather):
    model = build_model("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[0] = float("inf")
    with pytest.raises(UsageError, match="the residual stream of layer 2 is not finite"):
        gather(model, make_dictionaries(model), documents_of(0))


def test_memory_that_does_not_suffice_is_told(build_model, make_dictionaries, gather):
    model = build_model("gpt2")
    dictionaries = make_dictionaries(model)

    def encode(stream):
        raise torch.OutOfMemoryError

    dictionaries[1].encode = encode
    with pytest.raises(UsageError, match="a batch of 512 tokens does not fit in memory: lower batch_tokens"):
        gather(model, dictionaries, documents_of(0), batch_tokens=512)


def test_the_model_is_read_without_dropout_and_left_as_it_was(build_model, make_dictionaries, gather):
    model = build_model("gpt2")
    dictionaries, documents = make_dictionaries(model), documents_of(0, count=4)
    expected = dense(gather(model, dictionaries, documents, name="evaluating"), 3)
    model.train()
    np.testing.assert_array_equal(dense(gather(model, dictionaries, documents, name="training"), 3), expected)
    assert model.training


def test_the_bar_shows_where_it_is_wanted(build_model, make_dictionaries, gather, capsys):
    model = build_model("gpt2")
    for name, progress, shown in (("no", False, False), ("yes", True, True), ("redirected", None, False)):
        gather(model, make_dictionaries(model), documents_of(0, count=4), name=name, progress=progress)
        assert ("codes" in capsys.readouterr().err) is shown


def test_weights_are_told_apart(build_model):
    model = build_model("gpt2")
    first = model_fingerprint(model)
    assert first == model_fingerprint(build_model("gpt2")) != model_fingerprint(build_model("gpt2", seed=1))
    half = model_fingerprint(build_model("gpt2").to(torch.bfloat16))
    with torch.no_grad():
        model.transformer.h[2].ln_1.bias[5] += 1e-6
    assert len({first, half, model_fingerprint(model)}) == 3


@pytest.mark.parametrize("normalised", ["none", "layer_norm"])
def test_dictionaries_of_sae_lens_are_read(build_model, gather, tmp_path, normalised):
    from sae_lens import StandardSAE, StandardSAEConfig

    from spiral_trl.sae.dictionaries import load_dictionaries

    for layer in (0, 2):
        sae = StandardSAE(
            StandardSAEConfig(d_in=24, d_sae=96, device="cpu", dtype="float32", normalize_activations=normalised)
        )
        random = torch.Generator().manual_seed(layer)
        with torch.no_grad():
            for weights in (sae.W_enc, sae.W_dec, sae.b_dec):
                weights.normal_(std=0.2, generator=random)
        sae.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_pre"
        sae.save_model(tmp_path / "saes" / f"layer_{layer:02d}")
    model = build_model("gpt2")
    dictionaries = load_dictionaries(str(tmp_path / "saes"), model)
    documents = documents_of(0)
    store = gather(model, dictionaries, documents, shard_tokens=100)
    _, codes, streams = alone(model, dictionaries, documents)
    quality = json.loads((store.folder / "quality.json").read_text())
    for layer, dictionary in dictionaries.items():
        np.testing.assert_allclose(dense(store, layer), codes[layer], atol=2e-5)
        assert store.about["layers"][str(layer)] == json.loads(json.dumps(dictionary.to_dict()))
        stream = torch.tensor(streams[layer]).float()
        # SAELens's own way there and back
        missed = (dictionary.sae(stream) - stream).detach().double().numpy()
        expected = (missed**2).sum() / ((streams[layer] - streams[layer].mean(0)) ** 2).sum()
        assert quality[str(layer)]["unexplained_variance"] == pytest.approx(expected, rel=1e-4)
