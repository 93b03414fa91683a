"""MODEL_DIR/token_losses: the loss of each token of held-out texts, at each scored checkpoint.

    <token set>/tokens.parquet   a row per document: its text, and its tokens
    <token set>/<step>.f16       HEADER bytes of JSON, then little-endian float16 losses in nats

Rounding to float16 gives a relative error of at most 2^-11 (0.05 %), or an absolute one of 2^-25
below 2^-14 nats. A finite loss above 65,504 nats is stored as that; NaN and infinity stay, and the
header counts them. It also names the checkpoint by its `ManifestEntry.wall_time`, as the files of
`run.trajectory` do.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxllm.errors import UserError, first_line
from jaxllm.io import is_remote, parquet
from jaxllm.kvstore import ByteRange, Damaged, KeyValueStore
from jaxllm.run.layout import Layout
from jaxllm.uploads import allowed

HEADER = 256  # bytes
LARGEST = 65_504.0  # of finite float16 numbers
FILES_AT_ONCE = 64
_SET, _LOSSES = "tokens.parquet", ".f16"
_COLUMNS = ("tokens", "ends")  # of the former, lists with an item per token


@dataclasses.dataclass(frozen=True)
class TokenSet:
    """The n scored tokens of held-out documents."""

    name: str
    texts: tuple[str, ...]  # the documents, as far as they are scored
    tokens: np.ndarray  # int32 [n], token ids
    documents: np.ndarray  # int32 [n], indices into `texts`, ascending
    positions: np.ndarray  # int32 [n], index of a token in its document
    ends: np.ndarray  # int32 [n], UTF-8 byte offset in the document at which a token's text ends
    fingerprint: str  # hash of `texts` and `tokens`

    @classmethod
    def of(
        cls, name: str, texts: Sequence[str], ids: Sequence[Any], ends: Sequence[Any]
    ) -> TokenSet:
        """The set of documents with these texts, token ids and byte ends."""
        sizes = [len(each) for each in ids]
        join = lambda parts: np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)
        tokens, digest = join(ids), hashlib.sha256(json.dumps([sizes, *texts]).encode())
        digest.update(tokens.astype("<i4").tobytes())
        return cls(
            name, tuple(texts), tokens, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            join([np.arange(size) for size in sizes]), join(ends), digest.hexdigest()[:16],
        )  # fmt: skip

    def first_documents(self, tokens: float) -> tuple[int, int]:
        """How many have at most so many tokens, but at least one; and their number of tokens."""
        ends = np.searchsorted(self.documents, np.arange(len(self.texts)), side="right")
        count = max(1, int(np.searchsorted(ends, tokens, side="right")))
        return count, int(ends[count - 1])


class TokenLosses:
    """The token losses of one token set in one run directory, local or in an object store.

    `checkpoints` are the `wall_time`s of the run's checkpoints by step, as far as known: losses of
    a checkpoint that the run has abandoned are not read.
    """

    def __init__(
        self, layout: Layout, name: str, checkpoints: Mapping[int, float] | None = None
    ) -> None:
        self.name, self.path = name, layout.token_losses / quote(name, safe=" :,+=")
        self._layout, self._checkpoints = layout, checkpoints or {}
        self._store = KeyValueStore(self.path)

    def token_set(self) -> TokenSet:
        """The tokens; UserError if the run has no such set."""
        if (found := self._set) is None:
            raise UserError(f"{self._layout.root} has no token set {self.name}; {self.remedy()}")
        return found

    def write_set(self, token_set: TokenSet) -> None:
        """Write the tokens, unless they are there; UserError if the losses there are of others."""
        if self._set is None:
            bounds = np.searchsorted(token_set.documents, np.arange(1, len(token_set.texts)))
            of_documents = {name: np.split(getattr(token_set, name), bounds) for name in _COLUMNS}
            buffer: Any = pa.BufferOutputStream()
            pq.write_table(pa.table({"text": token_set.texts, **of_documents}), buffer)
            self._store.write({_SET: buffer.getvalue().to_pybytes()})
            self._set = token_set
        self.check(token_set)

    def check(self, token_set: TokenSet) -> None:
        """Raise UserError if the losses there are of other tokens than these."""
        if self._set is not None and self._set.fingerprint != token_set.fingerprint:
            raise UserError(
                f"{self.path} has the losses of other tokens (since then, the text or the "
                f"vocabulary of {self.name} has changed): restore it, or move that directory away"
            )

    def write(self, step: int, losses: np.ndarray, checkpoint: float | None = None) -> None:
        """Write the losses of a checkpoint, float [n], replacing earlier ones of its step."""
        if not allowed(self.path):  # the run ends with the reason
            return
        n = len(self.token_set().tokens)
        if losses.shape != (n,):
            raise ValueError(f"losses {losses.shape} of {n} tokens")
        finite = np.isfinite(losses)
        rounded = np.where(finite, np.clip(losses, -LARGEST, LARGEST), losses).astype("<f2")
        header = {"checkpoint": checkpoint, "tokens": n, "not_finite": int((~finite).sum())}
        content = json.dumps(header).ljust(HEADER - 1).encode() + b"\n" + rounded.tobytes()
        self._store.write({f"{step}{_LOSSES}": content})

    def holds(self, step: int, checkpoint: float | None = None) -> bool:
        """Whether there are losses at `step`, of the checkpoint with this `wall_time`."""
        name = f"{step}{_LOSSES}"
        try:
            (content,) = self._store.start_reads([ByteRange(name, 0, HEADER)])()
        except Damaged:  # it is missing or too short
            return False
        header, local = _header(content), not is_remote(self.path)  # a store has whole objects
        size = (self.path / name).stat().length if local else HEADER + 2 * header["tokens"]
        return _is_of(header, checkpoint) and size == HEADER + 2 * header["tokens"] >= HEADER

    def steps(self) -> tuple[int, ...]:
        """The steps with losses, ascending."""
        return tuple(self.headers())

    def headers(self) -> dict[int, dict[str, Any]]:
        """The header of each step with losses: `checkpoint`, `tokens` and number `not_finite`."""
        steps = self._all_steps()
        wait = self._store.start_reads([ByteRange(f"{s}{_LOSSES}", 0, HEADER) for s in steps])
        found = dict(zip(steps, map(_header, wait()), strict=True))
        known = self.__dict__.get("_set")  # without a request for it
        for step, header in found.items():
            n = header["tokens"]
            if n < 0 or (known and n != len(known.tokens)):
                raise UserError(f"{self.path}/{step}{_LOSSES} is damaged: move it away")
        return {s: h for s, h in found.items() if _is_of(h, self._checkpoints.get(s))}

    def read(self, steps: Sequence[int] | None = None, tokens: slice = slice(None)) -> np.ndarray:
        """The losses in nats, float32 [S, n], of `steps` (None: all); reads those of `tokens` only.

        UserError names the checkpoints without losses, and the command that adds them.
        """
        headers = self.headers()
        wanted = tuple(headers if steps is None else steps)
        missing = [str(step) for step in wanted if step not in headers]
        if missing or not wanted:
            of = f" of checkpoints {', '.join(missing)}" if missing else ""
            raise UserError(f"{self.path} has no losses{of}; {self.remedy()}")
        chosen = range(headers[wanted[0]]["tokens"])[tokens]
        low, high = min(chosen, default=0), max(chosen, default=-1) + 1
        losses: Any = None
        for first in range(0, len(wanted), FILES_AT_ONCE):
            part = wanted[first : first + FILES_AT_ONCE]
            start, stop = HEADER + 2 * low, HEADER + 2 * high
            wait = self._store.start_reads([ByteRange(f"{s}{_LOSSES}", start, stop) for s in part])
            contents = wait()
            if losses is None:  # what a header claims is there
                losses = np.empty((len(wanted), len(chosen)), np.float32)
            for row, content in enumerate(contents, first):
                losses[row] = np.frombuffer(content, "<f2")[:: chosen.step]
        return losses

    def copy(self, into: TokenLosses, last: int) -> None:
        """Copy the losses until step `last` into another run, where they are of any checkpoint."""
        into.write_set(self.token_set())
        for step in [step for step in self.steps() if step <= last]:
            content = self._store.read(f"{step}{_LOSSES}")[0] or b""
            into.write(step, np.frombuffer(content[HEADER:], "<f2"))

    def abandon(self, step: int, directory: epath.PathLike) -> None:
        """Move the losses after `step` into `directory`."""
        names = [f"{later}{_LOSSES}" for later in self._all_steps() if later > step]
        if names:
            self._store.move(names, epath.Path(directory) / self.path.name)

    @functools.cached_property
    def _set(self) -> TokenSet | None:
        (content,) = self._store.read(_SET)
        if content is None:
            return None
        try:
            table = parquet(content).read()
            ids, ends = ([row.values.to_numpy() for row in table[name]] for name in _COLUMNS)
            texts = table["text"].to_pylist()
            for text, tokens, end in zip(texts, ids, ends, strict=True):
                bounds = np.concatenate([[0], end, [len(text.encode())]])
                if len(tokens) != len(end) or (np.diff(bounds) < 0).any():
                    raise ValueError("its tokens do not fit its texts")
            return TokenSet.of(self.name, texts, ids, ends)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}/{_SET} is damaged ({first_line(error)})") from error

    def _all_steps(self) -> list[int]:
        steps = (n.removesuffix(_LOSSES) for n in self._store.names() if n.endswith(_LOSSES))
        return sorted(int(step) for step in steps if step.isdecimal())

    def remedy(self) -> str:
        """The command that adds what is missing."""
        root = self._layout.root
        of = str(root) if self._layout.manifest.exists() else f"hf:… --output={root}"
        return f"`python -m jaxllm.evaluate --model_dir={of} --tasks={self.name} --missing` adds it"


def token_set_names(layout: Layout) -> tuple[str, ...]:
    """The names of a run's token sets, ascending."""
    names = KeyValueStore(layout.token_losses).names()
    return tuple(unquote(n.removesuffix(f"/{_SET}")) for n in names if n.endswith(f"/{_SET}"))


def _header(content: bytes) -> dict[str, Any]:
    """The header of a file; of an empty or damaged one, of fewer than 0 tokens."""
    try:
        header = json.loads(content)
        if type(header["tokens"]) is int and 0 <= header["tokens"] < 1 << 40:
            return {"checkpoint": None, **header}
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return {"checkpoint": 0, "tokens": -HEADER}


def _is_of(header: Mapping[str, Any], checkpoint: float | None) -> bool:
    """Whether a file is of this checkpoint, as far as both are known."""
    return None in (checkpoint, header["checkpoint"]) or header["checkpoint"] == checkpoint
