"""Sequence i of a run, and batches of sequences: pure functions of (seed, global index).

`mixture` maps i to a domain and an index in it; the index falls into an epoch of the domain, which
has its own `permutation`; `packing` gives the tokens. Nothing is replayed: the data position of a
run is one integer, and any host can compute any sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from jaxllm.data import corpora
from jaxllm.data.config import DataConfig
from jaxllm.data.jobs import run_in_processes, run_on_every_host
from jaxllm.data.mixture import Mixture
from jaxllm.data.packing import (
    ConcatSequences,
    PackedSequences,
    Range,
    SequenceArrays,
    empty_sequences,
    start_reads,
)
from jaxllm.data.permutation import derive_key, invert, permute
from jaxllm.data.prepare import PreparedDomain, prepare
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.vocabularies import load_tokenizer
from jaxllm.errors import UserError
from jaxllm.models.batch import Batch

ENDLESS = 1 << 62
PREFETCH = 4  # batches read ahead of the loop


class Origin(NamedTuple):
    """Where an order of sequences begins: in a branch on other data, not at a run's first one."""

    position: int = 0  # global index of its first sequence
    tokens: Mapping[str, int] = {}  # read of each domain before


BEGINNING = Origin()


def open_source(
    config: DataConfig,
    weights: Mapping[str, float] | None = None,
    hosts: int = 1,
    origin: Origin = BEGINNING,
    tokenizer: Tokenizer | None = None,
) -> SequenceSource:
    """Open the training sequences of a run, preparing corpora that are not in the cache.

    `weights` are the run's domains, from `corpora.resolve` (None: it is called). Several `hosts` at
    once prepare only what is small.
    """
    weights = weights or corpora.resolve(config)
    tokenizer = tokenizer or load_tokenizer(config, weights)
    run = run_in_processes if hosts == 1 else run_on_every_host
    prepared = prepare(config, weights, tokenizer, run=run)
    return SequenceSource(config, tokenizer, prepared, origin)


class SequenceSource:
    """Training sequences by global index, without end.

    `domains` are names, to which a batch's domain indices refer; `weights`, float64 [D], their
    shares of the sequences. The order begins at `origin`; every domain goes on from what was read
    before. `fingerprint` is a hash of tokens, weights, layout, sequence length, seed and origin,
    not of file locations: equal for two sources exactly when their sequences are.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        prepared: tuple[PreparedDomain, ...],
        origin: Origin = BEGINNING,
    ) -> None:
        self.config, self.tokenizer, self.prepared = config, tokenizer, prepared
        self.origin = origin
        of = [source.domain or source.name for source in prepared]
        self.domains = tuple(dict.fromkeys(of))
        self._domain_of = np.array([self.domains.index(name) for name in of], np.int32)
        self._layouts = [_lay_out(config, domain) for domain in prepared]
        self._mixture = Mixture(
            [domain.weight for domain in prepared], key=derive_key(config.seed, "mixture")
        )
        self.weights = np.bincount(self._domain_of, self._mixture.weights)
        shares = [(d.name, d.weight, d.store.meta["digest"]) for d in prepared]
        settings: list[object] = [config.layout, config.sequence_length, config.seed]
        if origin.position:
            settings += [origin.position, sorted(origin.tokens.items())]
        self.fingerprint = f"{derive_key(*settings, *shares):016x}"

    def tokens_read(self, position: int) -> dict[str, int]:
        """Tokens of each domain (or source) in the sequences before `position`, with padding."""
        own = position - self.origin.position
        return dict(self.origin.tokens) | {
            source.name: self.origin.tokens.get(source.name, 0)
            + self._mixture.count(index, own) * self.config.sequence_length
            for index, source in enumerate(self.prepared)
        }

    def sequences(self, start: int, count: int) -> SequenceArrays:
        """Sequences start .. start + count - 1, the arrays of a `Batch` [count, T]."""
        sources, numbers = self._mixture.sequences(start - self.origin.position, count)
        arrays = empty_sequences(count, self.config.sequence_length)
        reads = []  # of all sources at once
        for source in np.unique(sources):
            places = np.flatnonzero(sources == source)
            order = self._order(int(source), numbers[places])
            layout, store = self._layouts[source], self.prepared[source].store
            reads.append((layout, places, start_reads(store, layout.ranges(order))))
        for layout, places, wait in reads:
            for place, chunks in zip(places, wait(), strict=True):
                layout.fill({name: array[place] for name, array in arrays.items()}, chunks)
        return arrays | {"domains": self._domain_of[sources]}

    def ranges(self, start: int, count: int) -> Iterator[tuple[int, list[Range]]]:
        """The source of sequences start .. start + count - 1, and their chunks in its store."""
        sources, numbers = self._mixture.sequences(start - self.origin.position, count)
        for source, number in zip(sources.tolist(), numbers, strict=True):
            order = self._order(source, np.atleast_1d(number))
            yield source, self._layouts[source].ranges(order)[0]

    def reads(
        self, name: str, tokens: Range, start: int, stop: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yield where sequences start .. stop - 1 read tokens of a document, in O(log) steps.

        For each epoch: the first and last sequence with targets among `tokens` of the corpus task
        `name`, and the number of these targets. The inverse of `sequences`.
        """
        source = next((i for i, one in enumerate(self.prepared) if one.name == name), None)
        if source is None:
            return
        layout, key = self._layouts[source], self._key
        indices, targets = layout.find(*tokens)
        position, read = self.origin.position, self._read_before(source)
        first, last = (read + self._mixture.count(source, p - position) for p in (start, stop))
        for epoch in range(first // layout.count, -(-last // layout.count)):
            numbers = epoch * layout.count + invert(indices, layout.count, key(source, epoch))
            own = (numbers >= first) & (numbers < last)
            if own.any():
                ends = (numbers[own].min() - read, numbers[own].max() - read)
                a, b = (position + self._mixture.sequence(source, int(end)) for end in ends)
                yield a, b, int(targets[own].sum())

    def epochs(self, sequences: int) -> dict[str, float]:
        """How often the first `sequences` sequences read each domain, or each of its sources."""
        return {
            source.name: sequences * source.weight / layout.count
            for source, layout in zip(self.prepared, self._layouts, strict=True)
        }

    def epochs_read(self, position: int) -> dict[str, float]:
        """How often each domain (or source) of this mixture has been read before `position`."""
        read, length = self.tokens_read(position), self.config.sequence_length
        return {
            source.name: read[source.name] / (layout.count * length)
            for source, layout in zip(self.prepared, self._layouts, strict=True)
        }

    def _order(self, source: int, numbers: np.ndarray) -> list[int]:
        """Layout indices of a source's sequences `numbers`; each epoch has its own order."""
        size = self._layouts[source].count
        epochs, indices = np.divmod(numbers + self._read_before(source), size)
        for epoch in np.unique(epochs):
            own, key = epochs == epoch, self._key(source, epoch)
            indices[own] = permute(indices[own], size, key)
        return indices.tolist()

    def _read_before(self, source: int) -> int:
        """The number of a source's sequences that were read before the order began."""
        tokens = self.origin.tokens.get(self.prepared[source].name, 0)
        return -(-tokens // self.config.sequence_length)

    def _key(self, source: int, epoch: int) -> int:
        return derive_key(self.config.seed, self.prepared[source].name, epoch)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise UserError if `vocab_size` does not cover the tokenizer's ids."""
        if vocab_size < self.tokenizer.size:
            raise UserError(
                f"ModelConfig.vocab_size = {vocab_size} is too small: the corpora are tokenized"
                f" with a vocabulary of {self.tokenizer.size}"
            )


def open_batches(
    source: SequenceSource,
    batch_size: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Any:
    """Iterate over this host's sequences of each global batch, as `read_ahead`.

    The first batch begins at sequence `start`. Host p of P has sequences [p * B/P, (p + 1) * B/P)
    of each batch of B, so the hosts' sequences in order are the global batch.
    """
    if batch_size % process_count:
        raise UserError(
            f"DataConfig.batch_size = {batch_size} is not divisible by {process_count} hosts"
        )
    local = batch_size // process_count
    first = start + process_index * local
    return read_ahead(lambda i: Batch(**source.sequences(first + i * batch_size, local)))


def read_ahead(read: Callable[[int], Batch]) -> Any:
    """Iterate over read(0), read(1), … without end, read ahead by threads; `close` it when done."""
    options = grain.ReadOptions(num_threads=PREFETCH, prefetch_buffer_size=PREFETCH)
    return iter(grain.MapDataset.range(ENDLESS).map(read).to_iter_dataset(options))


def _lay_out(config: DataConfig, domain: PreparedDomain) -> ConcatSequences | PackedSequences:
    counts = domain.store.counts
    if counts.tokens <= counts.documents:
        raise UserError(
            f"corpus {domain.name}: each of its documents is a single token, so that there is"
            " nothing to predict; read it with another vocabulary, or leave it out"
        )
    if config.layout == "pack":
        return PackedSequences(domain.store, config.sequence_length)
    masked = config.layout == "concat_masked"
    return ConcatSequences(domain.store, config.sequence_length, masked)
