"""Text to token ids in plain processes that load little more than NumPy and a tokenizer.

Workers are `python -m jaxllm.data.tokenize` children that talk through their pipes. Unlike a
forked child they share no threads with JAX or TensorFlow, unlike a spawned one they do not import
the user's main module, and when the parent is killed their input ends and so do they.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from jaxllm.data.tokenizer_files import TokenizerFiles

BYTE_OFFSET = 3  # ids 0, 1, 2 are padding, EOS and unknown, as in ByT5
BYTE_EOS, BYTE_BOS, BYTE_VOCAB_SIZE = 1, 259, 260


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A batch of tokenised documents, each as BOS, text, EOS (see `Encoder`).

    Attributes:
      ids: uint16 or uint32, the documents' tokens one after the other.
      lengths: int64 [documents], tokens of each.
      text_bytes: UTF-8 bytes of all the texts.
    """

    ids: np.ndarray
    lengths: np.ndarray
    text_bytes: int


class Encoder:
    """Encodes batches of documents, each as BOS, its tokens, EOS.

    A vocabulary without a BOS, or with one token for both (GPT-2, GPT-NeoX, OPT), ends documents
    with EOS only, as those models were trained: it stands before the next document as well.

    Attributes:
      bos: id that opens a document, -1 if none does.
      eos: id that ends it, -1 if the vocabulary has none.
      size: ids are below this.
      dtype: the smallest unsigned integer that holds them.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self.files = files
        self.bos, self.eos, self.size = BYTE_BOS, BYTE_EOS, BYTE_VOCAB_SIZE
        if files.kind != "bytes":
            codec = files.codec
            self.bos, self.eos, self.size = codec.bos, codec.eos, codec.size
        if self.bos == self.eos:
            self.bos = -1
        self.dtype = np.dtype("<u2" if self.size <= 1 << 16 else "<u4")

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Encodes each text by itself."""
        raw = [text.encode() for text in texts]
        encoded: Sequence[Sequence[int] | np.ndarray]
        if self.files.kind == "bytes":
            encoded = [np.frombuffer(b, np.uint8) + np.uint16(BYTE_OFFSET) for b in raw]
        else:
            encoded = self.files.codec.encode(texts)
        begin = [self.bos] if self.bos >= 0 else []
        end = [self.eos] if self.eos >= 0 else []
        rows = [np.concatenate([begin, ids, end]).astype(self.dtype) for ids in encoded]
        return Tokens(
            ids=np.concatenate(rows) if rows else np.zeros(0, self.dtype),
            lengths=np.array([len(row) for row in rows], np.int64),
            text_bytes=sum(map(len, raw)),
        )


def encode_batches(
    batches: Iterable[Sequence[str]], files: TokenizerFiles, workers: int
) -> Iterator[Tokens]:
    """Encodes batches in `workers` processes (0: in this one), in order."""
    if workers == 0:
        yield from map(Encoder(files), batches)
        return
    pipes: SimpleQueue[subprocess.Popen] = SimpleQueue()
    processes = [_start(files) for _ in range(workers)]
    for process in processes:
        pipes.put(process)

    def encode(batch: Sequence[str]) -> Tokens:
        process = pipes.get()
        try:
            assert process.stdin and process.stdout
            _send(process.stdin, list(batch))
            return pickle.load(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"a tokenising process ended ({process.wait()})") from error
        finally:
            pipes.put(process)

    threads = ThreadPoolExecutor(workers)
    try:
        pending: collections.deque[Future[Tokens]] = collections.deque()
        for batch in batches:
            pending.append(threads.submit(encode, batch))
            if len(pending) > 2 * workers:  # bounds what is read ahead
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
        for process in processes:
            assert process.stdin and process.stdout
            process.stdin.close()
            process.stdout.close()
            process.wait()


def _start(files: TokenizerFiles) -> subprocess.Popen:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxllm.data.tokenize"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
    )
    assert process.stdin
    _send(process.stdin, files)
    return process


def _send(stream: IO[bytes], value: object) -> None:
    pickle.dump(value, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    encoder = Encoder(pickle.load(requests))
    while True:
        try:
            batch = pickle.load(requests)
        except EOFError:
            return
        _send(replies, encoder(batch))


if __name__ == "__main__":
    # Run as __main__, Tokens would pickle as __main__.Tokens: serve from the imported module.
    from jaxllm.data import tokenize

    tokenize._serve(sys.stdin.buffer, sys.stdout.buffer)
