"""How long each stage of an SAE report takes at the paper's size, and in how much memory: from a model to the page.

    python benchmarks/sae_chain.py
    python benchmarks/sae_chain.py --layers 3 --features 512 --width 64 --vocabulary 400 --tokens 2000 --json chain.json

The model is a GPT-2 of random weights, the dictionaries TopK autoencoders of random directions in SAELens's format, and the
tokenizer and texts are made up too: nothing is downloaded, and nothing that is found means anything. Half of a
dictionary's directions are those of the layer before, so that features pass on, combine and form communities, as they do
in trained ones. The stages are those of `spiral-trl sae`; quality and ablation, which run the model again for each
layer, are measured on fewer tokens.

Memory is that of all processes (proportional set size), the model, the dictionaries and mapped files among it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from peak import Peak

from spiral_trl.errors import UsageError, run_main


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spiral_trl.sae.dictionaries import Dictionary

Result = TypeVar("Result")
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
# Tokens of a text, topics that texts are about, and words of a topic
TEXT, TOPICS, OF_TOPIC = 128, 64, 40
# The model looks back as far as GPT-2
POSITIONS = 1024


def make_words(count: int) -> list[str]:
    """Distinct words of two syllables and more, the shorter ones first."""
    words: list[str] = []
    last = SYLLABLES
    while len(words) < count:
        last = [start + end for start in last for end in SYLLABLES]
        words += last[: count - len(words)]
    return words


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    """One token a word, and one for the end of a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", *make_words(vocabulary - 1)]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=words[0], eos_token=words[0])


def make_texts(vocabulary: int, tokens: int, seed: int) -> Iterator[dict[str, str]]:
    """Texts of one topic each: its own words, common words by Zipf's law, and phrases that come again and again."""
    rng = np.random.default_rng(seed)
    words = np.array(make_words(vocabulary - 1))
    common = 1 / np.arange(1, len(words) + 1)
    topics = rng.integers(len(words), size=(TOPICS, OF_TOPIC))
    phrases = rng.integers(len(words), size=(TOPICS, 4))
    for _ in range(-(-tokens // TEXT)):
        topic = rng.integers(TOPICS)
        drawn = rng.choice(len(words), TEXT, p=common / common.sum())
        own = rng.random(TEXT) < 0.3
        drawn[own] = rng.choice(topics[topic], own.sum())
        for start in rng.integers(TEXT - phrases.shape[1], size=8):
            drawn[start : start + phrases.shape[1]] = phrases[topic]
        yield {"text": " ".join(words[drawn])}


def make_model(layers: int, width: int, vocabulary: int, seed: int) -> PreTrainedModel:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=POSITIONS,
        n_embd=width,
        n_layer=layers,
        n_head=max(1, width // 64),
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def save_dictionaries(folder: Path, layers: int, features: int, width: int, active: int, seed: int) -> None:
    """Autoencoders of the streams before each block, as SAELens saves them."""
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    generator = torch.Generator().manual_seed(seed)
    directions = torch.zeros(0, width)
    for layer in range(layers):
        directions = torch.cat([directions, torch.randn(features, width, generator=generator)])[:features]
        directions /= directions.norm(dim=-1, keepdim=True)
        sae = TopKSAE(
            TopKSAEConfig(
                d_in=width,
                d_sae=features,
                k=active,
                metadata=SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_pre"),
            )
        )
        with torch.no_grad():
            sae.W_dec.copy_(directions)
            sae.W_enc.copy_(directions.T)
        sae.save_model(folder / f"layer_{layer:02d}")
        # Those that the next layer has too, at other places
        kept = torch.randperm(features, generator=generator)[: features // 2]
        directions = directions[kept]


def processor_seconds() -> float:
    """Of this process and of its children that have ended: what other work on the machine disturbs little."""
    return sum(os.times()[:4])


class Stages:
    """Runs one stage after the other, and prints what each took."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        print(f"{'':34} {'seconds':>8} {'of CPU':>8} {'peak GB':>8}")

    def run(self, what: str, work: Callable[[], Result]) -> Result:
        start, before = time.perf_counter(), processor_seconds()
        with Peak() as peak:
            result = work()
        seconds, processor = time.perf_counter() - start, processor_seconds() - before
        self.rows.append({"stage": what, "seconds": seconds, "processor_seconds": processor, "peak_bytes": peak.bytes})
        print(f"{what:34} {seconds:8.2f} {processor:8.2f} {peak.bytes / 1e9:8.2f}", flush=True)
        return result


def measure(options: argparse.Namespace, folder: Path, page: Path) -> dict[str, Any]:
    from spiral_trl.sae.causal_effects import measure_ablation
    from spiral_trl.sae.collect import collect
    from spiral_trl.sae.dictionaries import load_dictionaries
    from spiral_trl.sae.documents import text_documents
    from spiral_trl.sae.effect_words import describe_effects
    from spiral_trl.sae.graph import build_graph
    from spiral_trl.sae.quality import measure_quality
    from spiral_trl.sae.relations import relate
    from spiral_trl.sae.report import write_report
    from spiral_trl.sae.selection import Limits
    from spiral_trl.sae.store import write_json

    stages = Stages()
    tokenizer = make_tokenizer(options.vocabulary)
    texts = make_texts(options.vocabulary, options.tokens, options.seed)
    documents = list(text_documents(texts, tokenizer, max_tokens=TEXT))
    model = make_model(options.layers, options.width, options.vocabulary, options.seed)
    saved = folder / "dictionaries"
    stages.run(
        "dictionaries made and saved",
        lambda: save_dictionaries(
            saved, options.layers, options.features, options.width, options.active, options.seed
        ),
    )
    dictionaries: dict[int, Dictionary] = stages.run(
        "dictionaries loaded", lambda: load_dictionaries(str(saved), model)
    )
    store = stages.run(
        "collect",
        lambda: collect(
            model,
            dictionaries,
            documents,
            folder / "codes",
            model_name="GPT-2 of random weights",
            source={"kind": "made up", "seed": options.seed},
            progress=False,
        ),
    )
    quality = stages.run(
        "quality",
        lambda: measure_quality(
            model, dictionaries, documents, max_tokens=options.quality_tokens, batch_tokens=options.quality_tokens
        ),
    )
    directions = {layer: dictionary.directions.numpy() for layer, dictionary in dictionaries.items()}
    relations = stages.run(
        "relate",
        lambda: relate(
            store, folder / "relations", directions=directions, processes=options.processes, progress=False
        ),
    )
    graph = stages.run("labels, flow and communities", lambda: build_graph(store, relations, folder))
    effects = stages.run(
        "ablation",
        lambda: measure_ablation(
            model,
            dictionaries,
            store,
            documents,
            folder / "ablation",
            num_features=options.ablated,
            num_documents=2,
            min_count=min(20, options.tokens // 500),
            min_tokens=2,
            seed=options.seed,
        ),
    )
    write_json(folder / "ablation.json", describe_effects(effects.to_dict()))
    data = stages.run(
        "page",
        lambda: write_report(
            folder, page, tokenizer, model, directions, limits=Limits(features=options.shown), site=True
        ),
    )
    page_bytes = sum(file.stat().st_size for file in (page / "index.html", *(page / "data").iterdir()))
    shards = len(list((page / "data").glob("shard-*.js")))
    seconds, processor = (sum(row[name] for row in stages.rows) for name in ("seconds", "processor_seconds"))
    print(
        f"{seconds:.0f} s, {processor:.0f} s of CPU, for {store.num_tokens:,} tokens of {len(store.layers)} layers, {options.features:,} features "
        f"each, {next(iter(quality.values())).l0:.1f} active\n"
        f"{len(graph.gates)} gates, {len(graph.communities['list'])} communities; shown: {len(data['features']):,} "
        f"features, {len(data['edges']):,} edges, {shards} shards, {page_bytes / 1e6:.1f} MB"
    )
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        **{name: getattr(options, name) for name in ("layers", "features", "width", "vocabulary", "active")},
        "tokens": store.num_tokens,
        "processes": options.processes,
        "stages": stages.rows,
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_bytes": max(row["peak_bytes"] for row in stages.rows),
        "gates": len(graph.gates),
        "communities": len(graph.communities["list"]),
        "shown": {"features": len(data["features"]), "edges": len(data["edges"])},
        "page": {"bytes": page_bytes, "shards": shards},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="blocks, each with a dictionary (default: 12)")
    parser.add_argument("--features", type=int, default=24_576, help="features of a dictionary (default: 24576)")
    parser.add_argument("--active", type=int, default=50, help="features active on a token (default: 50)")
    parser.add_argument("--width", type=int, default=768, help="width of the model (default: 768)")
    parser.add_argument("--vocabulary", type=int, default=50_257, help="tokens that there are (default: 50257)")
    parser.add_argument("--tokens", type=int, default=20_480, help="tokens read (default: 20480)")
    parser.add_argument("--quality-tokens", type=int, default=512, help="of the quality (default: 512)")
    parser.add_argument("--ablated", type=int, default=2, help="features ablated in each layer (default: 2)")
    parser.add_argument("--shown", type=int, default=2000, help="features of the page (default: 2000)")
    parser.add_argument("--processes", type=int, default=2, help="processes of the relations (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is made up (default: 0)")
    parser.add_argument("--folder", type=Path, help="where codes and dictionaries go meanwhile (default: temporary)")
    parser.add_argument("--page", type=Path, metavar="FOLDER", help="keep the page there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    options = parser.parse_args(argv)
    if options.layers < 2 or options.features < 4 * options.active or options.width < 8:
        raise UsageError(
            "--layers must be at least 2, --features at least four times --active, and --width at least 8"
        )
    if options.width > 64 and options.width % 64:
        raise UsageError(f"--width above 64 must be a multiple of it, a head's width, not {options.width}")
    if options.tokens < 1000 or options.vocabulary < 100 or min(options.active, options.quality_tokens) < 1:
        raise UsageError(
            "--tokens must be at least 1000, --vocabulary at least 100, --active and --quality-tokens at least 1"
        )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        result = measure(options, Path(name), options.page or Path(name) / "page")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
