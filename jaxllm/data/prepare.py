"""Tokenize the corpora of a run once, into the cache.

A domain's split is one store (`jaxllm.data.store`), named by a hash of its documents, vocabulary
and format. Runs with other weights, layouts or sequence lengths share it. It is written under a
temporary name and renamed when complete, so a partial store is never read; the next prepare removes
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from jaxllm.data import corpora
from jaxllm.data.config import DataConfig
from jaxllm.data.store import FORMAT_VERSION, TokenStore, TokenWriter
from jaxllm.data.tokenizer import Tokenizer, Tokens
from jaxllm.errors import UserError
from jaxllm.io import made_once, remove_abandoned

BATCH_CHARS = 1 << 22  # several of the longest documents, for the tokenizer's threads
MAX_BAD_SHARE = 0.001  # of unreadable lines, above which a corpus is refused
EARLY_BAD = 1000


class PreparedDomain(NamedTuple):
    """A tokenized domain of a run: a SeqIO task, its share of the sequences, and its tokens."""

    name: str
    weight: float
    store: TokenStore


def prepare(
    config: DataConfig, weights: Mapping[str, float], tokenizer: Tokenizer, split: str = "train"
) -> tuple[PreparedDomain, ...]:
    """The tokenized domains of a run; those not in the cache are tokenized into it.

    Args:
      weights: the run's domains, from `corpora.resolve`.

    Raises:
      UserError: a corpus is missing, empty or has too many bad lines, the tokenizer has neither BOS
        nor EOS, or the cache cannot be written.
    """
    if not tokenizer.separates:
        raise UserError(
            f"{config.vocabulary.path}: no file names a token that ends or begins a document; set"
            " VocabularyConfig.eos_token (or bos_token) to one, as '<|endoftext|>'"
        )
    root = Path(config.cache, "corpora")
    prepared = []
    with _disk_errors(config.cache):
        root.mkdir(parents=True, exist_ok=True)
        remove_abandoned(root)
        for domain, weight in weights.items():
            parts = (FORMAT_VERSION, tokenizer.identity, corpora.fingerprint(domain, split))
            key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
            directory = root / f"{domain}-{split}-{key}"
            if not TokenStore.is_complete(directory):
                prepare_domain(domain, split, tokenizer, directory)
            store = TokenStore(directory)
            _check_bad(domain, store.counts.documents, store.counts.bad)
            prepared.append(PreparedDomain(domain, weight, store))
    return tuple(prepared)


def prepare_domain(domain: str, split: str, tokenizer: Tokenizer, directory: Path) -> None:
    """Tokenize one split of one domain into a store at `directory`, atomically."""
    from tqdm import tqdm

    with made_once(directory, TokenStore.is_complete) as partial:
        if partial is None:  # another process created it while this one waited
            return
        began = time.monotonic()
        reading = _Reading(domain, split)
        writer = TokenWriter(partial, tokenizer.dtype)
        text_bytes = 0
        bar = tqdm(desc=f"prepare {domain} {split}", unit="B", unit_scale=True, disable=None)
        with contextlib.closing(writer), bar:
            for tokens in _encoded(reading.batches(), tokenizer):
                writer.add(tokens.ids, tokens.lengths)
                text_bytes += tokens.text_bytes
                bar.update(tokens.text_bytes)
            _check_bad(domain, writer.documents, reading.bad, reading.first_bad)
            if not writer.documents:
                raise UserError(f"corpus {domain} has no text in its split {split}")
            counts = {"text_bytes": text_bytes, "empty": reading.empty, "bad": reading.bad}
            writer.finish(domain=domain, split=split, first_bad=reading.first_bad, **counts)
    left_out = f", {reading.empty} empty and {reading.bad} bad left out"
    print(
        f"prepared {domain} {split}: {writer.documents:,} documents, {writer.tokens:,} tokens, "
        f"{text_bytes / 1e6:.1f} MB in {time.monotonic() - began:.1f} s"
        f"{left_out if reading.empty or reading.bad else ''}",
        file=sys.stderr,
    )
    if reading.bad:
        print(f"  first bad line: {reading.first_bad}", file=sys.stderr)


class _Reading:
    """Document texts in batches; counts documents without text and unreadable lines."""

    def __init__(self, domain: str, split: str) -> None:
        self._domain, self._split = domain, split
        self._documents = self.empty = self.bad = 0
        self.first_bad = ""  # the first error, with file and line number

    def batches(self) -> Iterator[list[str]]:
        """Lists of texts of about BATCH_CHARS characters in total."""
        batch: list[str] = []
        size = 0
        for document in corpora.documents(self._domain, self._split, self._on_error):
            text = document["text"]
            if not text:
                self.empty += 1
                continue
            self._documents += 1
            batch.append(text)
            size += len(text)
            if size >= BATCH_CHARS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _on_error(self, message: str) -> None:
        self.bad += 1
        self.first_bad = self.first_bad or message
        if self.bad % EARLY_BAD == 0:  # do not read a terabyte of nonsense to its end
            _check_bad(self._domain, self._documents, self.bad, self.first_bad)


def _encoded(batches: Iterator[list[str]], tokenizer: Tokenizer) -> Iterator[Tokens]:
    """Tokenize each batch while the next one is read."""
    with ThreadPoolExecutor(1) as thread:
        pending: Future[Tokens] | None = None
        for batch in batches:
            following = thread.submit(tokenizer.encode_documents, batch)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _check_bad(domain: str, documents: int, bad: int, first: str = "") -> None:
    if bad > MAX_BAD_SHARE * (documents + bad):
        raise UserError(
            f"corpus {domain}: {bad} of {documents + bad} documents cannot be read"
            f"{', first ' + first if first else ''}; mend them, or take them out"
            f" (up to {MAX_BAD_SHARE:.1%} are left out)"
        )


@contextlib.contextmanager
def _disk_errors(cache: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.strerror} ({error.filename})" if error.strerror else str(error)
        raise UserError(f"DataConfig.cache_dir {cache}: {what}") from error


def summary(domains: Sequence[PreparedDomain]) -> str:
    """A table of the documents, tokens and bytes of each domain."""
    head = f"{'domain':<16} {'share':>6} {'documents':>10} {'tokens':>14} {'MB':>9} {'B/token':>8}"
    lines = [head]
    for name, weight, store in domains:
        n = store.counts
        lines.append(
            f"{name:<16} {weight:>6.1%} {n.documents:>10,} {n.tokens:>14,}"
            f" {n.text_bytes / 1e6:>9.2f} {n.text_bytes / n.tokens:>8.2f}"
        )
    return "\n".join(lines)
