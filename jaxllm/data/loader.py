"""Row i of a run, and the batches made of rows: pure functions of (seed, global index).

Row i is row k of domain d (`mixture`); k falls into epoch e of the domain, whose order is a
permutation of its own (`permutation`), and the layout says what is in the row (`packing`). Nothing
is replayed to get there: the position of a run is one integer, and any host can compute any row.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import grain
import numpy as np

from jaxllm.data.config import DataConfig
from jaxllm.data.mixture import Mixture
from jaxllm.data.packing import (
    ConcatRows,
    PackedRows,
    PackPlan,
    Row,
    empty_rows,
    plan_packing,
)
from jaxllm.data.permutation import derive_key, permute
from jaxllm.data.prepare import PreparedDomain, prepare
from jaxllm.data.store import TokenStore
from jaxllm.errors import UserError
from jaxllm.io import made_once
from jaxllm.models.batch import Batch

ENDLESS = 1 << 62


def open_source(config: DataConfig, split: str = "train") -> SequenceSource:
    """The rows of a run. Prepares its corpora if they are not in the cache."""
    return SequenceSource(config, prepare(config, split))


class SequenceSource:
    """An endless table of training rows.

    Attributes:
      domains: names, in the order of a batch's domain indices.
      weights: float64 [D], their shares of the rows.
      vocab_size: ids of the vocabulary are below this.
      rows_per_epoch: rows of each domain until it begins again.
      tokens_per_epoch: tokens of each domain.
      fingerprint: the same for two sources exactly when their rows are the same: of the tokens,
        the shares, the layout, the length and the seed, wherever the files lie.
    """

    def __init__(self, config: DataConfig, prepared: tuple[PreparedDomain, ...]) -> None:
        self.config = config
        self.prepared = prepared
        self.domains = tuple(domain.name for domain in prepared)
        self.vocab_size = max(domain.store.counts.vocab_size for domain in prepared)
        self.tokens_per_epoch = {d.name: d.store.counts.tokens for d in prepared}
        self._rows = [_open_rows(config, domain.store) for domain in prepared]
        self.rows_per_epoch = {d: r.count for d, r in zip(self.domains, self._rows, strict=True)}
        self._mixture = Mixture(
            [domain.weight for domain in prepared], key=derive_key(config.seed, "mixture")
        )
        self.weights = self._mixture.weights
        shares = [(d.name, d.weight, d.store.meta["digest"]) for d in prepared]
        settings = (config.layout, config.sequence_length, config.seed)
        self.fingerprint = f"{derive_key(*settings, *shares):016x}"

    def rows(self, start: int, count: int) -> Row:
        """Rows start .. start + count - 1.

        Returns:
          inputs, targets, positions, segment_ids int32 [count, T]; weights float32 [count, T];
          domains int32 [count].
        """
        domains, numbers = self._mixture.rows(start, count)
        rows = empty_rows(count, self.config.sequence_length)
        for domain in np.unique(domains):
            source = self._rows[domain]
            mine = np.flatnonzero(domains == domain)
            for at, chunk in zip(mine, self._chunks(int(domain), numbers[mine]), strict=True):
                source.fill({name: array[at] for name, array in rows.items()}, chunk)
        return rows | {"domains": domains.astype(np.int32)}

    def _chunks(self, domain: int, numbers: np.ndarray) -> list[int]:
        """Where the layout keeps rows `numbers` of a domain: each epoch has an order of its own."""
        size = self._rows[domain].count
        epochs, chunks = np.divmod(numbers, size)
        for epoch in np.unique(epochs):
            key = derive_key(self.config.seed, self.domains[domain], epoch)
            chunks[epochs == epoch] = permute(chunks[epochs == epoch], size, key)
        return chunks.tolist()

    def __getitem__(self, index: int) -> Row:
        """Row `index`: as `rows`, without the leading dimension."""
        return {name: array[0] for name, array in self.rows(index, 1).items()}

    def epochs(self, stop: int) -> dict[str, float]:
        """How often each domain has been read through after `stop` rows."""
        return {
            name: self._mixture.count(index, stop) / self._rows[index].count
            for index, name in enumerate(self.domains)
        }

    def check_hosts_agree(self) -> None:
        """Raises a UserError on all hosts of a run if one of them has other rows."""
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() == 1:
            return
        own = np.frombuffer(bytes.fromhex(self.fingerprint), np.uint8)
        every = multihost_utils.process_allgather(own)
        others = np.flatnonzero((every != every[0]).any(axis=1))
        if len(others):
            raise UserError(
                f"host {', '.join(map(str, others))} has other data than host 0: the corpora, their"
                " vocabulary, the data settings or the Python version differ; make them equal"
            )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises a UserError if a model of `vocab_size` has no room for the vocabulary's ids."""
        if vocab_size < self.vocab_size:
            raise UserError(
                f"ModelConfig.vocab_size = {vocab_size} is too small: the corpora are tokenised"
                f" with a vocabulary of {self.vocab_size}"
            )


class Loader:
    """The local rows of each global batch from row `start` on, made ahead by Grain's threads.

    Host p of P has rows p * B/P .. (p + 1) * B/P - 1 of each batch of B, so the hosts' rows in
    order are the batch that one host would have. Iterate it; `close` it when done.

    Attributes:
      wait_seconds: time spent waiting for rows so far.
    """

    def __init__(
        self,
        source: SequenceSource,
        batch_size: int,
        start: int = 0,
        *,
        process_index: int = 0,
        process_count: int = 1,
        prefetch: int | None = None,
    ) -> None:
        if batch_size % process_count:
            raise UserError(
                f"DataConfig.batch_size = {batch_size} is not divisible by {process_count} hosts"
            )
        prefetch = source.config.prefetch if prefetch is None else prefetch
        batches = _LocalBatches(source, batch_size, start, process_index, process_count)
        options = grain.ReadOptions(
            num_threads=min(prefetch, 4), prefetch_buffer_size=max(1, prefetch)
        )
        self._iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
        self.wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch = next(self._iterator)
        self.wait_seconds += time.perf_counter() - began
        return batch

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()


class _LocalBatches:
    """Batch j of a run as a table, which is what Grain reads from."""

    def __init__(
        self, source: SequenceSource, batch_size: int, start: int, process: int, processes: int
    ) -> None:
        self._source, self._batch_size = source, batch_size
        self._local = batch_size // processes
        self._start = start + process * self._local

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Batch:
        rows = self._source.rows(self._start + index * self._batch_size, self._local)
        return Batch(**rows)


def _open_rows(config: DataConfig, store: TokenStore) -> ConcatRows | PackedRows:
    if config.layout == "pack":
        return PackedRows(store, _packing(store, config.sequence_length))
    return ConcatRows(store, config.sequence_length, masked=config.layout == "concat_masked")


def _packing(store: TokenStore, length: int) -> PackPlan:
    """The packing of a store, kept beside it: made once, then memory-mapped."""
    directory = store.directory / f"pack-{length}"
    names = [field.name for field in dataclasses.fields(PackPlan)]
    if not directory.exists():
        with made_once(directory) as partial:
            if partial is not None:
                plan = plan_packing(store.starts, length)
                for name in names:
                    np.save(partial / f"{name}.npy", getattr(plan, name))
    return PackPlan(*(np.load(directory / f"{name}.npy", mmap_mode="r") for name in names))
