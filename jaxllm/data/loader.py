"""Sequence i of a run, and batches of sequences: pure functions of (seed, global index).

`mixture` maps i to a domain and an index in it; the index falls into an epoch of the domain, which
has its own `permutation`; `packing` gives the tokens. Nothing is replayed: the data position of a
run is one integer, and any host can compute any sequence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import grain
import numpy as np

from jaxllm.data import corpora
from jaxllm.data.config import DataConfig
from jaxllm.data.jobs import run_in_processes, run_on_every_host
from jaxllm.data.mixture import Mixture
from jaxllm.data.packing import (
    ConcatSequences,
    Layout,
    PackedSequences,
    SequenceArrays,
    empty_sequences,
)
from jaxllm.data.permutation import derive_key, permute
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
) -> SequenceSource:
    """Open the training sequences of a run, preparing corpora that are not in the cache.

    Args:
      weights: the run's domains, from `corpora.resolve`; None resolves them.
      hosts: how many processes do this at once; several prepare only what is small.
    """
    weights = weights or corpora.resolve(config)
    tokenizer = load_tokenizer(config, weights)
    run = run_in_processes if hosts == 1 else run_on_every_host
    prepared = prepare(config, weights, tokenizer, run=run)
    return SequenceSource(config, tokenizer, prepared, origin)


class SequenceSource:
    """Training sequences by global index, without end.

    Attributes:
      tokenizer: the tokenizer of the token ids.
      domains: domain names, indexed by a batch's domain indices.
      weights: float64 [D], share of the sequences per domain.
      origin: where their order begins; every domain goes on from what was read before.
      fingerprint: hash of the tokens, weights, layout, sequence length, seed and origin, but not of
        file locations: equal for two sources exactly when their sequences are.
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
        self.domains = tuple(domain.name for domain in prepared)
        self._layouts = [_lay_out(config, domain) for domain in prepared]
        self._mixture = Mixture(
            [domain.weight for domain in prepared], key=derive_key(config.seed, "mixture")
        )
        self.weights = self._mixture.weights
        shares = [(d.name, d.weight, d.store.meta["digest"]) for d in prepared]
        settings: list[object] = [config.layout, config.sequence_length, config.seed]
        if origin.position:
            settings += [origin.position, sorted(origin.tokens.items())]
        self.fingerprint = f"{derive_key(*settings, *shares):016x}"

    def starting_at(self, origin: Origin) -> SequenceSource:
        """The same corpora and weights, in an order that begins at `origin`."""
        return SequenceSource(self.config, self.tokenizer, self.prepared, origin)

    def tokens_read(self, position: int) -> dict[str, int]:
        """Tokens of each domain in the sequences before `position`, padding included."""
        own = position - self.origin.position
        return dict(self.origin.tokens) | {
            domain: self.origin.tokens.get(domain, 0)
            + self._mixture.count(index, own) * self.config.sequence_length
            for index, domain in enumerate(self.domains)
        }

    def sequences(self, start: int, count: int) -> SequenceArrays:
        """Sequences start .. start + count - 1.

        Returns:
          inputs, targets, positions, segment_ids int32 [count, T]; weights float32 [count, T];
          domains int32 [count].
        """
        domains, numbers = self._mixture.sequences(start - self.origin.position, count)
        arrays = empty_sequences(count, self.config.sequence_length)
        reads = []  # of all domains at once
        for domain in np.unique(domains):
            places = np.flatnonzero(domains == domain)
            order = self._order(int(domain), numbers[places])
            reads.append((self._layouts[domain], places, self._layouts[domain].start_reads(order)))
        for layout, places, wait in reads:
            for place, chunks in zip(places, wait(), strict=True):
                layout.fill({name: array[place] for name, array in arrays.items()}, chunks)
        return arrays | {"domains": domains.astype(np.int32)}

    def _order(self, domain: int, numbers: np.ndarray) -> list[int]:
        """Layout indices of the domain's sequences `numbers`; each epoch has its own order."""
        size = self._layouts[domain].count
        before = self.origin.tokens.get(self.domains[domain], 0)
        numbers = numbers + -(-before // self.config.sequence_length)
        epochs, indices = np.divmod(numbers, size)
        for epoch in np.unique(epochs):
            key = derive_key(self.config.seed, self.domains[domain], epoch)
            indices[epochs == epoch] = permute(indices[epochs == epoch], size, key)
        return indices.tolist()

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise UserError if `vocab_size` does not cover the tokenizer's ids."""
        if vocab_size < self.tokenizer.size:
            raise UserError(
                f"ModelConfig.vocab_size = {vocab_size} is too small: the corpora are tokenized"
                f" with a vocabulary of {self.tokenizer.size}"
            )


class Loader:
    """An iterator over this host's sequences of each global batch, read ahead by threads.

    The first batch begins at sequence `start`. Host p of P has sequences [p * B/P, (p + 1) * B/P)
    of each batch of B, so the hosts' sequences in order are the global batch. `close` it when done.

    Attributes:
      wait_seconds: time spent waiting for batches so far.
    """

    def __init__(
        self,
        source: SequenceSource,
        batch_size: int,
        start: int = 0,
        *,
        process_index: int = 0,
        process_count: int = 1,
        prefetch: int = PREFETCH,
    ) -> None:
        if batch_size % process_count:
            raise UserError(
                f"DataConfig.batch_size = {batch_size} is not divisible by {process_count} hosts"
            )
        local = batch_size // process_count
        first = start + process_index * local

        def batch(index: int) -> Batch:
            return Batch(**source.sequences(first + index * batch_size, local))

        dataset = grain.MapDataset.range(ENDLESS).map(batch)
        options = grain.ReadOptions(num_threads=min(prefetch, 4), prefetch_buffer_size=prefetch)
        self._iterator = iter(dataset.to_iter_dataset(options))
        self.wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch = next(self._iterator)
        self.wait_seconds += time.perf_counter() - began
        return batch

    def close(self) -> None:
        """Stop reading ahead."""
        self._iterator.close()


def _lay_out(config: DataConfig, domain: PreparedDomain) -> Layout:
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
