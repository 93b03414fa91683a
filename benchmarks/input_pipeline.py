"""Cost of the input pipeline: tokenizing, opening a prepared corpus, waiting for batches.

    python -m benchmarks.input_pipeline [CORPUS_DIR]

CORPUS_DIR is laid out as DataConfig.corpus_dir; without it the quickstart's corpora are read.
Prints one line per measurement with the ratio to its target; 1.00 or more meets it:

    tokenizing        MB of text per second with BPE of 8192 and of 32,000, per core (the target)
                      and per wall time with the tokenizer's threads
    opening           a prepared corpus of a million documents, and reading one sequence
    waiting           share of the time that a loop waits, with steps that compute in JAX
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxllm.data import corpora, vocabularies
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.loader import open_batches, open_source
from jaxllm.data.packing import ConcatSequences, empty_sequences, start_reads
from jaxllm.data.store import (
    Counts,
    ShardWriter,
    TokenStore,
    read_records,
    write_corpus,
    write_part,
)
from jaxllm.data.tokenizer import Separators, Tokenizer
from jaxllm.kvstore import KeyValueStore

TOKENIZE_MB_PER_SECOND, OPEN_SECONDS, WAIT_SHARE = 3.0, 1.0, 0.01


def tokenizing(config: DataConfig) -> None:
    """Tokenize each domain's text; CPU time, as other processes may share the cores."""
    domains = list(corpora.resolve(config))
    for size in (8_192, 32_000):
        began = time.perf_counter()
        model = vocabularies.train_sentencepiece(size, domains)
        trained = time.perf_counter() - began
        tokenizer = Tokenizer("sentencepiece", model)
        text_bytes = tokens = 0
        seconds = wall = 0.0
        for name in domains:
            texts = []
            for document in corpora.documents(name, "train"):
                texts.append(document["text"])
                if sum(map(len, texts)) > 2_000_000:
                    break
            began, began_wall = time.process_time(), time.perf_counter()
            encoded = tokenizer.encode_documents(texts)
            seconds += time.process_time() - began
            wall += time.perf_counter() - began_wall
            text_bytes += encoded.text_bytes
            tokens += len(encoded.ids)
        rate = text_bytes / seconds / 1e6
        print(
            f"tokenizing, vocabulary {size}: {rate:.1f} MB/s per core,"
            f" {text_bytes / wall / 1e6:.1f} MB/s wall, {text_bytes / tokens:.2f} bytes per token,"
            f" trained in {trained:.1f} s"
            f" | ratio to {TOKENIZE_MB_PER_SECOND} MB/s: {rate / TOKENIZE_MB_PER_SECOND:.2f}"
        )


def opening(directory: Path, documents: int = 1_000_000, length: int = 300) -> None:
    """Open a corpus of `documents` documents of `length` tokens on average, and read a sequence."""
    random = np.random.default_rng(0)
    files = KeyValueStore(directory)
    writer = ShardWriter(files, "part", np.dtype("<u2"))
    for _ in range(documents // 10_000):
        lengths = random.integers(length // 2, length * 3 // 2, 10_000)
        writer.add(random.integers(0, 32_000, lengths.sum(), dtype="<u2"), lengths)
    writer.flush()
    counts = Counts(documents, sum(shard.tokens for shard in writer.shards))
    write_part(files, "part", writer.shards, counts)
    (record,) = read_records(files, ["part"])
    assert record
    write_corpus(files, "corpus", [record], np.dtype("<u2"), Separators(1, None))
    began = time.perf_counter()
    store = TokenStore(directory, "corpus")
    sequences = ConcatSequences(store, 2048)
    out = {name: array[0] for name, array in empty_sequences(1, 2048).items()}
    (chunks,) = start_reads(store, sequences.ranges([sequences.count // 2]))()
    sequences.fill(out, chunks)
    seconds = time.perf_counter() - began
    print(
        f"opening {store.counts.documents:,} documents, {store.counts.tokens:,} tokens:"
        f" {seconds * 1e3:.1f} ms | ratio to {OPEN_SECONDS} s: {OPEN_SECONDS / seconds:.0f}"
    )


def waiting(config: DataConfig, step_seconds: float = 0.15, steps: int = 60) -> None:
    """Load batches in a loop whose steps keep every core busy in JAX, as training does."""
    import jax
    import jax.numpy as jnp

    source = open_source(config)
    began = time.process_time()
    source.sequences(0, 64 * config.batch_size)
    per_batch = (time.process_time() - began) / 64
    product = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda i, x: jnp.tanh(x @ x), x))
    x = product(jnp.ones((512, 512))).block_until_ready()
    began = time.perf_counter()
    product(x).block_until_ready()
    repeats = max(1, round(step_seconds / (time.perf_counter() - began)))
    loader = open_batches(source, config.batch_size)
    next(loader)
    waited, began = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        next(loader)
        waited += time.perf_counter() - asked
        for _ in range(repeats):
            x = product(x)
        x.block_until_ready()
    total = time.perf_counter() - began
    share = waited / total
    loader.close()
    print(
        f"waiting, {config.batch_size} x {config.sequence_length}, {config.layout}:"
        f" {share:.3%} of steps of {total / steps * 1e3:.0f} ms ({per_batch * 1e3:.1f} ms to make"
        f" a batch) | ratio to {WAIT_SHARE:.0%}: {WAIT_SHARE / max(share, 1e-6):.1f}"
    )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    flags.add_argument("corpus_dir", nargs="?")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        mixture = "corpora" if args.corpus_dir else "embedded"
        for layout in ("concat", "pack"):
            config = DataConfig(
                mixture_or_task_name=mixture,
                corpus_dir=args.corpus_dir,
                modules=("jaxllm.evals.probes.corpora",),
                cache_dir=f"{scratch}/cache",
                vocabulary=VocabularyConfig(size=8192),
                sequence_length=512,
                batch_size=8,
                layout=layout,
            )
            if layout == "concat":
                tokenizing(config)
                opened = Path(scratch, "million")
                opened.mkdir()
                opening(opened)
            waiting(config)


if __name__ == "__main__":
    sys.exit(main())
