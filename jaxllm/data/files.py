"""Corpora in files: which files a domain has, by split, and in which parts they are read.

A corpus directory is `<domain>/**/<file>`, local or in a bucket. The words of a file's path below
its domain name its split, those nearest to its name first: `validation/00.parquet`, `val.jsonl.zst`
and `train-of-thought/dev_2.txt` are two validation files and one more; a file without such a word
is for training. Hidden files and those of no format in `formats.FORMATS` are left out, and counted.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jaxllm.data.formats import (
    FORMATS,
    FilePart,
    OnError,
    Reading,
    parts_of,
    suffixes_of,
)
from jaxllm.errors import UserError

# Splits of corpora, and the words that name them.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "heldout"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
_NOT_CORPORA = ("readme", "license", "changelog", "notice")
_HASHED = 1 << 16  # bytes at each end of a local file that its fingerprint covers


class Part(Protocol):
    """A stretch of a corpus that is read on its own, in any process.

    Attributes:
      file: the file it is in, or another name for messages.
      size: bytes to read; 0 if unknown.
      key: hash of what it holds: of equal parts, only one is prepared.
    """

    @property
    def file(self) -> str:
        """See above."""

    @property
    def size(self) -> int:
        """See above."""

    @property
    def key(self) -> str:
        """See above."""

    def documents(self, on_error: OnError | None = None) -> Reading:
        """The documents in order, as dicts with `text` and `id`; returns the number of lines."""


class Corpus(Protocol):
    """Documents that are read in Python; `seqio_source.CorpusSource` is their SeqIO source."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have documents."""

    def parts(self, split: str) -> Sequence[Part]:
        """The parts of a split in order, which depend on nothing but the corpus."""

    def fingerprint(self, split: str) -> str:
        """A string that changes with the documents."""


@dataclasses.dataclass(frozen=True)
class FileCorpus:
    """The files of one domain.

    Attributes:
      root: directory of the domain.
      files: split -> path below `root` -> `fsspec`'s description of the file, in order of paths.
      left_out: kind of file -> number of files that are not read.
      text: name of the field with the text, with dots for nested fields.
    """

    root: str
    files: Mapping[str, Mapping[str, Mapping[str, Any]]]
    left_out: Mapping[str, int]
    text: str = "text"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have files."""
        return tuple(self.files)

    def parts(self, split: str) -> list[FilePart]:
        """The parts of the files of a split."""
        return [
            part
            for path, info in self.files[split].items()
            for part in parts_of(
                f"{self.root}/{path}",
                info["size"],
                version_of(f"{self.root}/{path}", info),
                self.text,
            )
        ]

    def fingerprint(self, split: str) -> str:
        """The names of the files below the domain, and what tells their contents apart."""
        versions = {p: version_of(f"{self.root}/{p}", i) for p, i in self.files[split].items()}
        return repr((self.text, versions))

    def size(self, split: str) -> int:
        """Total size of the files in bytes, as stored."""
        return sum(info["size"] for info in self.files.get(split, {}).values())


def directory_corpora(directory: str, text: str = "text") -> dict[str, FileCorpus]:
    """The domains of a corpus directory.

    Args:
      text: name of the field with the text.

    Raises:
      UserError: there is no such directory, or no training file in it.
    """
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(directory)
        found = system.find(root, detail=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"DataConfig.corpus_dir: cannot list {directory} ({error})") from error
    if not found:
        raise UserError(f"DataConfig.corpus_dir: no files below {directory}")
    domains: dict[str, dict[str, Mapping[str, Any]]] = collections.defaultdict(dict)
    for path in sorted(found):
        domain, _, below = path.removeprefix(root).lstrip("/").partition("/")
        if below and not domain.startswith((".", "_")):
            domains[domain][below] = found[path]
    base = directory.rstrip("/")
    corpora = {name: file_corpus(f"{base}/{name}", files, text) for name, files in domains.items()}
    if not any("train" in corpus.files for corpus in corpora.values()):
        raise UserError(f"{directory}: no training file of {', '.join(FORMATS)} below <domain>/")
    return {name: corpus for name, corpus in corpora.items() if corpus.files}


def file_corpus(root: str, files: Mapping[str, Mapping[str, Any]], text: str) -> FileCorpus:
    """A domain of files, given by path below `root`, sorted by split."""
    by_split: dict[str, dict[str, Mapping[str, Any]]] = {split: {} for split in SPLITS}
    left_out: collections.Counter[str] = collections.Counter()
    for path, info in files.items():
        kind = _left_out(path, info["size"])
        if kind:
            left_out[kind] += 1
        else:
            by_split[split_of(path)][path] = info
    return FileCorpus(root, {s: f for s, f in by_split.items() if f}, dict(left_out), text)


def split_of(path: str) -> str:
    """The split that the words of a path name."""
    for segment in reversed(path.lower().split("/")):
        for word in re.split(r"[^a-z]+", segment):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return "train"


def _left_out(path: str, size: int) -> str:
    """The kind of a file that is not read; empty for one that is."""
    *folders, name = path.lower().split("/")
    if any(segment.startswith((".", "_")) for segment in (*folders, name)) or name.endswith("~"):
        return "hidden"
    kind, _ = suffixes_of(name)
    if not kind or name.startswith(_NOT_CORPORA):
        return name[name.rfind(".") :] if "." in name else "without a suffix"
    return "" if size else "empty"


def version_of(path: str, info: Mapping[str, Any]) -> str:
    """What changes with the content of a file: its hash in a bucket, or size, time and ends."""
    stored = (info.get(key) for key in ("md5Hash", "etag", "ETag", "blob_id", "generation"))
    version = next((one for one in stored if one), None)
    if version is not None:
        return str(version)
    with open(path.removeprefix("file://"), "rb") as file:
        digest = hashlib.blake2b(file.read(_HASHED), digest_size=8)
        file.seek(max(0, info["size"] - _HASHED))
        digest.update(file.read(_HASHED))
    return f"{info['size']} {info['mtime']} {digest.hexdigest()}"
