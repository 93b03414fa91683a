"""Tokenize the corpora of a run once, into the cache.

A domain's split is one `jaxllm.data.store`; runs with other weights, layouts or sequence lengths
share it. Its parts (`corpora.parts`) are tokenized by independent jobs (`jaxllm.data.jobs`), and
the order of the parts, not of the jobs, is that of the tokens. A preparation that was killed, or
whose corpus has changed since, does only what is missing.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxllm.data import corpora
from jaxllm.data.config import DataConfig
from jaxllm.data.files import check_unchanged
from jaxllm.data.formats import BadLine, Part
from jaxllm.data.jobs import Runner, run_in_processes
from jaxllm.data.packing import complete_packing, pack_shard, unplanned_shards
from jaxllm.data.store import (
    FORMAT_VERSION,
    Counts,
    ShardWriter,
    TokenStore,
    counts_of,
    read_records,
    write_corpus,
    write_part,
)
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError
from jaxllm.kvstore import KeyValueStore

SPLIT = "train"
BATCH_CHARS = 1 << 22  # several of the longest documents, for the tokenizer's threads
MAX_BAD_SHARE = 0.001  # of unreadable lines, above which a corpus is refused
EARLY_BAD = 1000
LISTED_BAD = 10  # unreadable lines that a store's meta.json lists


class PreparedDomain(NamedTuple):
    """A tokenized domain of a run, or one of its sources."""

    name: str  # the SeqIO task
    weight: float  # share of the sequences
    store: TokenStore  # its tokens
    domain: str = ""  # the domain, where that has several sources


def prepare(
    config: DataConfig,
    weights: Mapping[str, float],
    tokenizer: Tokenizer,
    run: Runner = run_in_processes,
) -> tuple[PreparedDomain, ...]:
    """The tokenized domains of a run; those not in the cache are tokenized into it.

    `weights` are from `corpora.resolve`; `run` runs the jobs. UserError if a corpus is missing,
    empty or has too many bad lines, the tokenizer has neither BOS nor EOS, or the cache cannot be
    written.
    """
    if not any(id is not None for id in tokenizer.separators):
        raise UserError(
            f"{config.vocabulary.path}: no file names a token that ends or begins a document; set"
            " VocabularyConfig.special_tokens = {'eos_token': '<|endoftext|>'} (or bos_token)"
        )
    places = {domain: _place(config, domain, tokenizer) for domain in weights}
    new = [domain for domain in weights if not TokenStore.exists(*places[domain])]
    if new:
        began = time.monotonic()
        parts = {domain: corpora.parts(domain, SPLIT, config) for domain in new}
        items = [item for d in new for item in _missing(places[d][0], parts[d])]
        run(partial(tokenize_part, tokenizer), items, f"prepare {SPLIT}")
        for domain in new:
            _complete(domain, *places[domain], parts[domain], tokenizer)
        print(f"prepared {SPLIT} in {time.monotonic() - began:.1f} s", file=sys.stderr)
    stores = {domain: TokenStore(*place) for domain, place in places.items()}
    for domain, store in stores.items():
        _check_bad(domain, store.counts)
    if config.layout == "pack":
        length = config.sequence_length
        shards = [one for store in stores.values() for one in unplanned_shards(store, length)]
        run(partial(pack_shard, length), shards, f"pack {SPLIT}")
        for store in stores.values():
            complete_packing(store, length)
    return tuple(
        PreparedDomain(task, weights[task], store, corpora.domain_of(task))
        for task, store in stores.items()
    )


def _place(config: DataConfig, domain: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """The directory of a corpus, and its name there."""
    key = hashlib.sha256(repr((FORMAT_VERSION, tokenizer.identity)).encode()).hexdigest()[:16]
    directory = f"{config.cache}/corpora/{domain}-{SPLIT}-{key}"
    return directory, corpora.fingerprint(domain, SPLIT)[:16]


class PartItem(NamedTuple):
    """A part of `size` bytes to be tokenized into a store."""

    directory: str
    part: Part
    size: int


def _missing(directory: str, parts: Sequence[Part]) -> list[PartItem]:
    distinct = {part.key: part for part in parts}
    records = read_records(KeyValueStore(directory), list(distinct))
    written = zip(distinct.values(), records, strict=True)
    return [PartItem(directory, part, part.size) for part, record in written if record is None]


def tokenize_part(tokenizer: Tokenizer, item: PartItem) -> None:
    """Write the shards of a part, and its record; or in its place an error that a user can mend."""
    files = KeyValueStore(item.directory)
    try:
        _write_part(files, item.part, tokenizer)
    except UserError as error:
        files.write({f"{item.part.key}.error": str(error).encode()})


def _write_part(files: KeyValueStore, part: Part, tokenizer: Tokenizer) -> None:
    reading, separators = _Reading(part), tokenizer.separators
    writer = ShardWriter(files, part.key, tokenizer.dtype)
    text_bytes = found = 0
    for tokens in map(tokenizer.encode_documents, reading.batches()):
        writer.add(tokens.ids, tokens.lengths)
        text_bytes += tokens.text_bytes
        found += separators.count(tokens.ids)
    writer.flush()
    check_unchanged(part)
    documents = sum(shard.documents for shard in writer.shards)
    size, bad = sum(shard.tokens for shard in writer.shards), len(reading.bad)
    counts = Counts(documents, size, text_bytes, reading.empty, bad, found - documents)
    listed = {"lines": reading.lines, "bad_lines": reading.bad[:LISTED_BAD]}
    write_part(files, part.key, writer.shards, counts, **listed)


def _complete(
    domain: str, directory: str, name: str, parts: Sequence[Part], tokenizer: Tokenizer
) -> None:
    """Complete a corpus whose jobs have ended, and say what is in it."""
    files = KeyValueStore(directory)
    records = read_records(files, [part.key for part in parts])
    missing = [part for part, record in zip(parts, records, strict=True) if record is None]
    errors = [error for error in files.read(*(f"{part.key}.error" for part in missing)) if error]
    if errors:
        others = f" (and {len(errors) - 1} more like it)" if len(errors) > 1 else ""
        raise UserError(f"corpus {domain}: {errors[0].decode()}{others}")
    done: list[dict[str, Any]] = [record for record in records if record]
    if missing:
        raise UserError(
            f"corpus {domain}: {len(missing)} of {len(parts)} parts were not written, first of"
            f" {missing[0].file}; prepare again to go on with them"
        )
    counts = counts_of(done)
    bad = _bad_lines(parts, done)
    _check_bad(domain, counts, bad[0] if bad else "")
    if not counts.documents:
        why = "".join(f" ({note})" for note in corpora.notes(domain, SPLIT))
        raise UserError(f"corpus {domain} has no text in its split {SPLIT}{why}")
    write_corpus(
        files, name, done, tokenizer.dtype, tokenizer.separators,
        domain=domain, split=SPLIT, bad_lines=bad,
    )  # fmt: skip
    counted = {
        "empty documents left out": counts.empty, "bad lines left out": counts.bad,
        "separators inside of documents": counts.inner_separators,
    }  # fmt: skip
    notes = [f"{number:,} {what}" for what, number in counted.items() if number]
    notes += corpora.notes(domain, SPLIT)
    print(
        f"prepared {domain} {SPLIT}: {counts.documents:,} documents, {counts.tokens:,} tokens, "
        f"{counts.text_bytes / 1e6:.1f} MB{''.join(', ' + note for note in notes)}",
        *(f"  {line}" for line in bad),
        sep="\n",
        file=sys.stderr,
    )


def _bad_lines(parts: Sequence[Part], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first bad lines, with their numbers in the files, of which parts are stretches."""
    found: list[str] = []
    file, lines_before = "", 0
    for part, record in zip(parts, records, strict=True):
        lines_before = lines_before if part.file == file else 0
        for line, reason in record["bad_lines"]:
            found.append(f"{part.file}:{lines_before + line}: {reason}")
        file, lines_before = part.file, lines_before + record["lines"]
    return found[:LISTED_BAD]


class _Reading:
    """Document texts of a part in batches; counts lines, empty documents and unreadable lines."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self.documents = self.empty = self.lines = 0
        self.bad: list[BadLine] = []

    def batches(self) -> Iterator[list[str]]:
        """Lists of texts of about BATCH_CHARS characters in total."""
        batch: list[str] = []
        size = 0
        for document in self._documents():
            text = document["text"]
            if not text:
                self.empty += 1
                continue
            self.documents += 1
            batch.append(text)
            size += len(text)
            if size >= BATCH_CHARS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _documents(self) -> Generator[dict[str, str], None, None]:
        self.lines = yield from self._part.documents(self._on_error)

    def _on_error(self, bad: BadLine) -> None:
        self.bad.append(bad)
        if len(self.bad) % EARLY_BAD == 0:  # do not read a terabyte of nonsense to its end
            counts = Counts(self.documents, bad=len(self.bad))
            _check_bad(self._part.file, counts, f"{self._part.file}: {self.bad[0].reason}")


def _check_bad(domain: str, counts: Counts, first: str = "") -> None:
    read = counts.documents + counts.bad
    if counts.bad > MAX_BAD_SHARE * read:
        raise UserError(
            f"corpus {domain}: {counts.bad} of {read} documents cannot be read"
            f"{', first ' + first if first else ''}; mend them, or take them out"
            f" (up to {MAX_BAD_SHARE:.1%} are left out)"
        )


def summary(domains: Sequence[PreparedDomain], epochs: Mapping[str, float] | None = None) -> str:
    """A table of the documents, tokens and bytes of each domain, and how often it is read."""
    head = f"{'domain':<16} {'share':>6} {'documents':>10} {'tokens':>14} {'MB':>9} {'B/token':>8}"
    lines = [head + (f" {'epochs':>7}" if epochs else "")]
    for name, weight, store, _ in domains:
        n = store.counts
        lines.append(
            f"{name:<16} {weight:>6.1%} {n.documents:>10,} {n.tokens:>14,}"
            f" {n.text_bytes / 1e6:>9.2f} {n.text_bytes / n.tokens:>8.2f}"
            + (f" {epochs[name]:>7.2f}" if epochs else "")
        )
    return "\n".join(lines)
