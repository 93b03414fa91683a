"""Corpora that are read in Python: documents by split, and a fingerprint that changes with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from etils import epath

from jaxllm.data.readers import OnError, file_format, raise_on_error, read_documents
from jaxllm.errors import UserError

# Splits of corpora, and the prefixes of their file names.
SPLITS = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}


class Corpus(Protocol):
    """Documents that are read in Python; `seqio_source.CorpusSource` is their SeqIO source."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have documents."""

    def documents(self, split: str, on_error: OnError = raise_on_error) -> Iterator[dict[str, Any]]:
        """The documents of a split in order, as dicts with `text` and `id`."""

    def fingerprint(self, split: str) -> str:
        """A string that changes with the documents."""


@dataclasses.dataclass(frozen=True)
class FileCorpus:
    """The files of one domain, by split."""

    root: str
    files: Mapping[str, tuple[str, ...]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have files."""
        return tuple(self.files)

    def documents(self, split: str, on_error: OnError = raise_on_error) -> Iterator[dict[str, Any]]:
        """The documents of the files, in the order of the file names."""
        for file in self.files[split]:
            yield from read_documents(file, on_error)

    def fingerprint(self, split: str) -> str:
        """The names (below the domain), sizes and modification times of the files."""
        stats = []
        for file in self.files[split]:
            stat = epath.Path(file).stat()
            stats.append((file.removeprefix(self.root), stat.length, stat.mtime))
        return repr(stats)

    def size(self, split: str) -> int:
        """Total size of the files in bytes, as stored."""
        return sum(epath.Path(file).stat().length for file in self.files.get(split, ()))


def directory_corpora(directory: epath.PathLike) -> dict[str, FileCorpus]:
    """The domains of a corpus directory: `<domain>/[<source>/]<split>*.<suffix>`.

    Raises:
      UserError: there is no such directory, or no training file in it.
    """
    root = epath.Path(directory)
    if not root.is_dir():
        raise UserError(f"DataConfig.corpus_dir: no directory {root}")
    corpora = {}
    for domain in sorted(path for path in root.iterdir() if path.is_dir()):
        files: dict[str, list[str]] = {}
        for file in sorted(_files_below(domain), key=str):
            files.setdefault(_split_of(file.name), []).append(str(file))
        if files:
            ordered = {split: tuple(files[split]) for split in SPLITS if split in files}
            corpora[domain.name] = FileCorpus(str(domain), ordered)
    if not any("train" in corpus.files for corpus in corpora.values()):
        raise UserError(f"{root}: no <domain>/[<source>/]train*.jsonl or .txt file (.gz, .zst)")
    return corpora


def _files_below(domain: epath.Path) -> Iterator[epath.Path]:
    for path in domain.iterdir():
        below: Iterable[epath.Path] = path.iterdir() if path.is_dir() else [path]
        yield from (file for file in below if file_format(file) and not file.is_dir())


def _split_of(name: str) -> str:
    matching = (split for split, prefixes in SPLITS.items() if name.startswith(prefixes))
    return next(matching, "train")
