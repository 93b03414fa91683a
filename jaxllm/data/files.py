"""Corpora in files: which files a domain has, by split, and in which parts they are read.

A corpus directory is `<domain>/**/<file>`, local or in a bucket; or a domain is the files of a
directory or pattern of its own. The words of a file's path below its domain (or the pattern's first
wildcard) name its split, those nearest to its name first: `validation/00.parquet`, `val.jsonl.zst`
and `train-of-thought/dev_2.txt` are two validation files and one more; a file without such a word
is for training. Hidden files and those of no format in `formats.FORMATS` are left out, and counted.
Without a validation file, some training documents are held out (`held_out`).
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jaxllm.data import held_out
from jaxllm.data.formats import (
    FORMATS,
    FilePart,
    Part,
    open_file,
    parts_of,
    storage_errors,
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
_METADATA = (  # of a data set, beside its files, as `datasets` and TFDS write it
    "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "features.json", "state.json",
)  # fmt: skip
_HASHED = 1 << 16  # bytes at each end of a local file that its fingerprint covers


class Corpus(Protocol):
    """Documents that are read in Python; `seqio_source.CorpusSource` is their SeqIO source."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have documents."""

    def parts(self, split: str) -> Sequence[Part]:
        """The parts of a split in order, which depend on nothing but the corpus."""

    def fingerprint(self, split: str) -> str:
        """A string that changes with the documents."""

    def size(self, split: str) -> int:
        """Bytes of a split as stored; 0 if unknown."""


@dataclasses.dataclass(frozen=True)
class FileCorpus:
    """Files of a domain."""

    root: str  # directory of the files
    # split -> path below `root` -> `fsspec`'s description of the file, in order of paths
    files: Mapping[str, Mapping[str, Mapping[str, Any]]]
    left_out: Mapping[str, int]  # kind of file -> number of files that are not read
    text: str = "text"  # name of the field with the text, with dots for nested fields

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have files; and `validation`, which training files have, too."""
        held_out = ("validation",) if self._holds_out else ()
        return (*self.files, *held_out)

    @property
    def _holds_out(self) -> bool:
        return "train" in self.files and "validation" not in self.files

    @property
    def notes(self) -> list[str]:
        """What a user should know of the files, in short."""
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.left_out.items())
        said = [f"files left out: {kinds}"] if kinds else []
        return [*said, held_out.RULE] if self._holds_out else said

    def parts(self, split: str) -> list[FilePart]:
        """The parts of the files of a split."""
        parts = [
            part
            for path, info in self._read(split).items()
            for part in parts_of(path, info["size"], version_of(path, info), self.text)
        ]
        if not self._holds_out or split == "test":
            return parts
        count, chosen = held_out.leading(part.size for part in parts), split == "validation"
        divided = [dataclasses.replace(part, held_out=chosen) for part in parts[:count]]
        return divided if chosen else divided + parts[count:]

    def fingerprint(self, split: str) -> str:
        """The names of the files below the domain, and what tells their contents apart."""
        read, cut = self._read(split), len(self.root) + 1
        versions = {path[cut:]: version_of(path, info) for path, info in read.items()}
        return repr((self.text, versions, *([held_out.RULE] if self._holds_out else [])))

    def _read(self, split: str) -> dict[str, Mapping[str, Any]]:
        """The files that are read for a split, with their root."""
        files = self.files["train" if self._holds_out and split == "validation" else split]
        return {f"{self.root}/{path}": info for path, info in files.items()}

    def size(self, split: str) -> int:
        """Total size of the files in bytes, as stored."""
        return sum(info["size"] for info in self.files.get(split, {}).values())


def directory_corpora(directory: str) -> dict[str, FileCorpus]:
    """The domains of a corpus directory; UserError without a training file below <domain>/."""
    root, found = list_files(directory)
    domains: dict[str, dict[str, Mapping[str, Any]]] = collections.defaultdict(dict)
    for path in found:
        domain, _, below = path.partition("/")
        if below and not domain.startswith((".", "_")):
            domains[domain][below] = found[path]
    corpora = {name: file_corpus(f"{root}/{name}", files) for name, files in domains.items()}
    if not any("train" in corpus.files for corpus in corpora.values()):
        raise UserError(f"{directory}: no training file of {', '.join(FORMATS)} below <domain>/")
    return {name: corpus for name, corpus in corpora.items() if corpus.files}


def path_corpus(path: str, text: str) -> FileCorpus:
    """The files of a directory, a pattern or one file; UserError if none can be read."""
    corpus = file_corpus(*list_files(path), text)
    if not corpus.files:
        raise UserError(f"{path}: no file of {', '.join(FORMATS)}, only {corpus.notes[0]}")
    return corpus


def list_files(path: str) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """The directory with the files of a path or pattern; and, sorted, path below it -> `fsspec`'s
    description of the file.

    UserError if there are none, or they cannot be listed.
    """
    import fsspec

    path = path.rstrip("/")
    pattern = re.search(r"[*?[]", path)
    root = posixpath.dirname(path[: pattern.start()]) or "." if pattern else path
    with storage_errors(f"{path} cannot be listed"):
        system, name = fsspec.core.url_to_fs(path)
        found = system.glob(name, detail=True) if pattern else system.find(name, detail=True)
        for folder in [
            n for n, i in found.items() if "**" not in name and i["type"] == "directory"
        ]:
            found |= system.find(folder, detail=True)
        if list(found) == [name]:
            root, found = posixpath.dirname(path), {name: system.info(name)}
        above = fsspec.core.url_to_fs(root)[1].rstrip("/")
    if not found:
        raise UserError(f"no file matches {path}" if pattern else f"no files below {path}")
    return root, {
        file.removeprefix(f"{above}/"): info
        for file, info in sorted(found.items())
        if info["type"] != "directory"
    }


def file_corpus(
    root: str, files: Mapping[str, Mapping[str, Any]], text: str = "text"
) -> FileCorpus:
    """The files of a domain, given by path below `root`, sorted by split."""
    by_split: dict[str, dict[str, Mapping[str, Any]]] = {split: {} for split in SPLITS}
    left_out: collections.Counter[str] = collections.Counter()
    for path, info in files.items():
        if kind := _left_out(path, info["size"]):
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
    if name in _METADATA:
        return "metadata"
    kind, _ = suffixes_of(name)
    if not kind or name.startswith(_NOT_CORPORA):
        return name[name.rfind(".") :] if "." in name else "without a suffix"
    return "" if size else "empty"


def check_unchanged(part: Part) -> None:
    """Raise UserError if the file of a part, which has been read, is not as it was listed."""
    import fsspec

    if not isinstance(part, FilePart):
        return
    with storage_errors(f"{part.file} cannot be read"):
        system, name = fsspec.core.url_to_fs(part.file)
        system.invalidate_cache()
        version = version_of(part.file, system.info(name))
    if version != part.version:
        raise UserError(f"{part.file} has changed since it was listed: prepare again once it stays")


def version_of(path: str, info: Mapping[str, Any]) -> str:
    """What changes with the content of a file: its hash in a bucket, or size, time and ends."""
    stored = (info.get(key) for key in ("md5Hash", "etag", "ETag", "blob_id", "generation"))
    version = next((one for one in stored if one), None)
    if version is not None:
        return str(version)
    with storage_errors(f"{path} cannot be read"), open_file(path) as file:
        digest = hashlib.blake2b(file.read(_HASHED), digest_size=8)
        file.seek(max(0, info["size"] - _HASHED))
        digest.update(file.read(_HASHED))
    return f"{info['size']} {info.get('mtime', '')} {digest.hexdigest()}"
