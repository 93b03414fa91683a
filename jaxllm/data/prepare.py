"""Tokenises the corpora of a run once, into the cache.

A domain's split is one store (`jaxllm.data.store`), named by a hash of what it depends on: the
documents, the vocabulary and the format. Runs with other weights, layouts or lengths share it. It
is written under another name and renamed when complete, so what a killed prepare leaves is never
taken for a corpus; the next prepare removes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jaxllm.data.config import DataConfig
from jaxllm.data.store import FORMAT_VERSION, TokenStore, TokenWriter
from jaxllm.data.tokenize import Encoder, Tokens, encode_batches
from jaxllm.data.tokenizer_files import TokenizerFiles
from jaxllm.errors import UserError
from jaxllm.io import made_once, remove_abandoned

BATCH_CHARS = 1 << 18
EARLY_BAD = 1000
ONE_PROCESS_CHARS = 1 << 22


@dataclasses.dataclass(frozen=True)
class PreparedDomain:
    """A domain of a run, tokenised.

    Attributes:
      name: the SeqIO task.
      weight: its share of the rows; the weights of a run's domains sum to 1.
      store: its tokens.
    """

    name: str
    weight: float
    store: TokenStore


def prepare(config: DataConfig, split: str = "train") -> tuple[PreparedDomain, ...]:
    """The domains of a run, each tokenised into the cache if it is not there.

    Raises:
      UserError: a corpus is missing, empty or has too many bad lines, or the cache cannot be
        written.
    """
    from jaxllm.data import corpora, vocabularies

    domains = corpora.resolve(config)
    with _disk_errors(config.cache):
        Path(config.cache, "corpora").mkdir(parents=True, exist_ok=True)
        remove_abandoned(Path(config.cache, "corpora"))
        files = vocabularies.tokenizer_files(config)
        prepared = []
        for domain in domains:
            parts = (FORMAT_VERSION, files.identity, corpora.fingerprint(domain.name, split))
            key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
            directory = Path(config.cache, "corpora", f"{domain.name}-{split}-{key}")
            if not TokenStore.is_complete(directory):
                prepare_domain(config, domain.name, split, files, directory)
            store = TokenStore(directory)
            _check_bad(config, domain.name, store.counts.documents, store.counts.bad, "")
            prepared.append(PreparedDomain(domain.name, domain.weight, store))
    return tuple(prepared)


def prepare_domain(
    config: DataConfig, domain: str, split: str, files: TokenizerFiles, directory: Path
) -> None:
    """Tokenises one split of one domain into a store at `directory`, which appears complete."""
    from tqdm import tqdm

    with made_once(directory, TokenStore.is_complete) as partial:
        if partial is None:  # another process made it while this one waited
            return
        began = time.monotonic()
        reading = _Reading(config, domain, split)
        encoder = Encoder(files)
        writer = TokenWriter(partial, encoder.dtype)
        text_bytes = 0
        bar = tqdm(desc=f"prepare {domain} {split}", unit="B", unit_scale=True, disable=None)
        with contextlib.closing(writer), bar:
            for tokens in _encode(reading.batches(), encoder, config.num_workers):
                writer.add(tokens.ids, tokens.lengths)
                text_bytes += tokens.text_bytes
                bar.update(tokens.text_bytes)
            _check_bad(config, domain, writer.documents, reading.bad, reading.first_bad)
            if not writer.documents:
                raise UserError(f"corpus {domain} has no text in its split {split}")
            writer.finish(
                domain=domain,
                split=split,
                vocab_size=encoder.size,
                text_bytes=text_bytes,
                empty=reading.empty,
                bad=reading.bad,
                first_bad=reading.first_bad,
            )
    seconds = time.monotonic() - began
    left_out = (
        f", {reading.empty} empty and {reading.bad} bad left out"
        if (reading.empty or reading.bad)
        else ""
    )
    print(
        f"prepared {domain} {split}: {writer.documents:,} documents, {writer.tokens:,} tokens, "
        f"{text_bytes / 1e6:.1f} MB in {seconds:.1f} s{left_out}",
        file=sys.stderr,
    )
    if reading.bad:
        print(f"  first bad line: {reading.first_bad}", file=sys.stderr)


class _Reading:
    """Documents in batches of text, with a count of what is left out.

    Attributes:
      empty: documents without text so far.
      bad: lines that could not be read so far.
      first_bad: the first of them, with file and line number.
    """

    def __init__(self, config: DataConfig, domain: str, split: str) -> None:
        self._config, self._domain, self._split = config, domain, split
        self._documents = 0
        self.empty = self.bad = 0
        self.first_bad = ""

    def batches(self) -> Iterator[list[str]]:
        """Lists of texts of about BATCH_CHARS characters in all."""
        from jaxllm.data import corpora

        batch: list[str] = []
        size = 0
        for document in corpora.documents(self._domain, self._split, self._on_bad):
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

    def _on_bad(self, message: str) -> None:
        self.bad += 1
        self.first_bad = self.first_bad or message
        if self.bad % EARLY_BAD == 0:  # do not read a terabyte of nonsense to its end
            _check_bad(self._config, self._domain, self._documents, self.bad, self.first_bad)


def _encode(batches: Iterator[list[str]], encoder: Encoder, workers: int) -> Iterator[Tokens]:
    """Encodes in this process what is done before workers would have started."""
    chars = 0
    while workers == 0 or chars < ONE_PROCESS_CHARS:
        batch = next(batches, None)
        if batch is None:
            return
        chars += sum(map(len, batch))
        yield encoder(batch)
    yield from encode_batches(batches, encoder.files, workers)


def _check_bad(config: DataConfig, domain: str, documents: int, bad: int, first: str) -> None:
    if bad > config.max_bad_documents * (documents + bad):
        raise UserError(
            f"corpus {domain}: {bad} of {documents + bad} documents cannot be read"
            f"{', first ' + first if first else ''}; mend them, or raise"
            f" DataConfig.max_bad_documents ({config.max_bad_documents})"
        )


@contextlib.contextmanager
def _disk_errors(cache: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.strerror} ({error.filename})" if error.strerror else str(error)
        raise UserError(f"DataConfig.cache_dir {cache}: {what}") from error


def summary(domains: tuple[PreparedDomain, ...]) -> str:
    """A table of what the domains hold."""
    lines = [
        f"{'domain':<16} {'share':>6} {'documents':>10} {'tokens':>14} {'MB':>9} {'B/token':>8}"
    ]
    for domain in domains:
        counts = domain.store.counts
        lines.append(
            f"{domain.name:<16} {domain.weight:>6.1%} {counts.documents:>10,} {counts.tokens:>14,}"
            f" {counts.text_bytes / 1e6:>9.2f} {counts.text_bytes / counts.tokens:>8.2f}"
        )
    return "\n".join(lines)
