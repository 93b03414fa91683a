"""What a checkpoint has seen: which documents of its corpora it was trained on, when and how often.

Every batch is a function of its global index, and each step of that function has an inverse: the
layout tells the sequences of a document, the inverse permutation where each epoch reads them, and
the mixture in which batches that is. Nothing is replayed, and nothing had to be recorded.

A token is read where it is a target: each of a document but its first, which cannot be predicted,
once per epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxllm.data.loader import SequenceSource
from jaxllm.data.ngrams import count_ngrams
from jaxllm.data.store import TokenStore
from jaxllm.errors import UserError, nearest
from jaxllm.run.manifest import ManifestEntry

NEIGHBORS = (" ", "a", ".", "\n")  # what may stand beside a text and change its tokens
Passage = tuple[str, int, int]  # a domain, and tokens [start, stop) of one of its documents
Row = tuple[str, int, float, float, int, int]  # of the tables; see `History.reads`
SKIPPED, PASSED_OVER = "skipped", "passed over"  # read without effect; not read


class Stretch(NamedTuple):
    """The steps from `step` on with sequences start .. stop - 1, in one order."""

    source: SequenceSource
    step: int
    start: int
    stop: int
    batch_size: int
    without: str | None = None  # why it has no updates: SKIPPED or PASSED_OVER

    def step_of(self, sequence: int) -> int:
        """The update that reads a sequence."""
        return self.step + (sequence - self.start) // self.batch_size


class History:
    """The training sequences of a run up to one of its steps."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._all, last = stretches, stretches[-1].source
        self.stretches = [one for one in stretches if one.without != PASSED_OVER]
        self.stores = {d.name: d.store for one in stretches for d in one.source.prepared}
        self._encode, self._decode = last.tokenizer.encode, last.tokenizer.decode

    def document(self, name: str) -> Passage:
        """The document DOMAIN:NUMBER, numbered from 0; UserError if there is none."""
        domain, _, number = name.rpartition(":")
        if domain not in self.stores or not number.isdigit():
            near = nearest(domain, self.stores)
            raise UserError(f"no document {name}: write DOMAIN:NUMBER with a domain read{near}")
        if int(number) >= (count := self.stores[domain].counts.documents):
            raise UserError(f"no document {name}: {domain} has {count:,}, numbered from 0")
        return domain, *self.stores[domain].document(int(number))

    def search(self, text: str) -> Iterator[Passage]:
        """Yield every occurrence of a text inside a document of the corpora.

        One shard after the other is searched for the tokens of the text that do not depend on what
        surrounds it; the text at a match then decides. UserError if it has no such tokens.
        """
        around = [text, *(c + text for c in NEIGHBORS), *(text + c for c in NEIGHBORS)]
        ids, *others = (np.asarray(one, int) for one in self._encode(around))
        before, after = others[: len(NEIGHBORS)], others[len(NEIGHBORS) :]
        begin = len(ids) - min(_common(ids[::-1], other[::-1]) for other in before)
        end = min(_common(ids, other) for other in after)
        if end <= begin:
            raise UserError(f"--text={text}: too short to be found by its tokens: give more of it")
        decode = lambda tokens: self._decode(tokens.tolist())
        # what is not certain may be as many tokens as it has bytes
        left, right = (1 + len(decode(part).encode()) for part in (ids[:begin], ids[end:]))
        for domain, store in self.stores.items():
            for start in find_tokens(store, ids[begin:end]):
                _, first, last = store.document_at(start)
                near = store.read(max(first, start - left), min(last, start + end - begin + right))
                if decode(ids).strip() in decode(near):
                    yield domain, start, min(last, start + end - begin)

    def reads(self, passages: Sequence[Passage]) -> pd.DataFrame:
        """How often the tokens of the passages were read, on average, and when.

        A row per document read: domain, document, times, skipped of these, first_step, last_step.
        """
        rows = list[Row]()
        for domain, start, stop in passages:
            document, first, _ = self.stores[domain].document_at(start)
            start, stop = max(start, first + 1), max(stop, first + 2)
            for one in self.stretches:
                for a, b, targets in one.source.reads(domain, (start, stop), one.start, one.stop):
                    share = targets / (stop - start)
                    steps = one.step_of(a), one.step_of(b)
                    rows.append((domain, document, share, share * (one.without == SKIPPED), *steps))
        return _by_document(rows)

    def updates(self, first: int, last: int) -> pd.DataFrame:
        """The documents that updates first .. last read; a row each, as in `reads`."""
        rows = list[Row]()
        for one in self.stretches:
            bounds = np.array([first, last + 1]) - one.step
            start, stop = np.clip(one.start + bounds * one.batch_size, one.start, one.stop).tolist()
            for at, (source, chunks) in enumerate(one.source.ranges(start, stop - start), start):
                domain, step = one.source.prepared[source], one.step_of(at)
                for begin, end in chunks:
                    at_token = begin + 1  # the first target
                    while at_token < end:
                        number, opens, closes = domain.store.document_at(at_token)
                        if targets := min(closes, end) - max(at_token, opens + 1):
                            share = targets / (closes - opens - 1)
                            skipped = share * (one.without == SKIPPED)
                            rows.append((domain.name, number, share, skipped, step, step))
                        at_token = closes
        return _by_document(rows)

    def domains(self) -> pd.DataFrame:
        """How much the run and its parent have read: domain, tokens, times, skipped of these."""
        last = self._all[-1]
        total = pd.Series(last.source.tokens_read(last.stop))
        epochs = pd.Series(last.source.epochs_read(last.stop)) / total.clip(lower=1)
        read = lambda s, at: pd.Series(s.source.tokens_read(at)).reindex(total.index, fill_value=0)
        without = dict.fromkeys((None, SKIPPED, PASSED_OVER), 0 * total)
        for one in self._all:
            part = read(one, one.stop) - read(one, one.start)
            without[one.without] = without[one.without] + part
        tokens, skipped = total - without[PASSED_OVER], without[SKIPPED]
        columns = {"tokens": tokens, "times": tokens * epochs, SKIPPED: skipped * epochs}
        return pd.DataFrame(columns).rename_axis("domain").reset_index()

    def count_ngrams(self, tokens: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, float]:
        """Counts of n-grams, see `data.ngrams`, as often as they were read; and all tokens read."""
        read = self.domains().set_index("domain").tokens
        counts = [
            read[domain] / store.counts.tokens * count_ngrams(store, tokens, documents)
            for domain, store in self.stores.items()
        ]
        return np.sum(counts, axis=0), float(read.sum())


def history(
    entries: Sequence[ManifestEntry], sources: Sequence[SequenceSource], step: int,
    without: Mapping[int, str],
) -> History:  # fmt: skip
    """What a run has read up to `step`, by the data positions in its manifest.

    `sources` are those of its stages; `without`: steps SKIPPED or PASSED_OVER. UserError if none.
    """
    stretches, last, position = list[Stretch](), 0, 0
    for entry in entries:
        if entry.kind != "branched" and last < min(entry.step, step):
            batch = (entry.data_position - position) // (entry.step - last)
            for why, group in groupby(range(last + 1, min(entry.step, step) + 1), without.get):
                first, *more = group
                start = position + (first - last - 1) * batch
                span = start, start + (1 + len(more)) * batch
                stretches.append(Stretch(sources[entry.stage - 1], first, *span, batch, why))
        last, position = entry.step, entry.data_position
    if not stretches or last < step:
        raise UserError(f"--step={step}: the run has checkpoints up to step {last}")
    return History(stretches)


def find_tokens(store: TokenStore, ids: np.ndarray) -> Iterator[int]:
    """Yield where `ids` begin in a store, with a shard at a time in memory (up to 256 MB)."""
    for shard, edge in zip(store.shards, store.edges.tolist(), strict=False):
        tokens = store.shard_tokens(shard)
        content, pattern = tokens.tobytes(), ids.astype(tokens.dtype).tobytes()
        at = content.find(pattern)
        while at >= 0:
            if at % tokens.itemsize == 0:
                yield edge + at // tokens.itemsize
            at = content.find(pattern, at + 1)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """The number of leading tokens that are the same."""
    size = min(len(a), len(b))
    return int(np.append(a[:size] != b[:size], True).argmax())


def _by_document(rows: Sequence[Row]) -> pd.DataFrame:
    columns = ["domain", "document", "times", SKIPPED, "first_step", "last_step"]
    how = {"times": "sum", SKIPPED: "sum", "first_step": "min", "last_step": "max"}
    return pd.DataFrame(rows, columns=columns).groupby(columns[:2], as_index=False).agg(how)
