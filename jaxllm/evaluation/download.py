"""Fetches the benchmarks' own files into EVAL_DIR, and takes none whose SHA-256 is another.

A benchmark module says in UPSTREAM where its files come from. What has no hash there or in
`jaxllm.evals._sums` is not fetched: it is got by hand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import IO

from etils import epath

from jaxllm.errors import UserError

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Upstream:
    """Where some files of EVAL_DIR come from.

    Attributes:
      files: what their names begin with.
      url: what stands in place of that upstream; or an archive that holds them; or, for files
        without a hash, where to get them by hand.
      sha256: of the archive.
      inside: what their names begin with in the archive, in place of `files`.
    """

    files: str
    url: str
    sha256: str = ""
    inside: str = ""

    def place(self, name: str) -> str:
        """Where the file or folder `name` of EVAL_DIR is: its URL, or its name in the archive."""
        return (self.inside if self.sha256 else self.url) + name.removeprefix(self.files)


def github(repository: str, commit: str, folder: str) -> str:
    """The URL that the files of a folder of a repository have in common."""
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{folder}"


def source_of(name: str, sources: Iterable[Upstream]) -> Upstream | None:
    """The one of `sources` that says most about the file `name`."""
    known = [source for source in sources if name.startswith(source.files)]
    return max(known, key=lambda source: len(source.files), default=None)


def packed(name: str, sums: Mapping[str, str]) -> str | None:
    """`name`, or it with .gz, whichever has a hash."""
    return next((each for each in (name, f"{name}.gz") if each in sums), None)


@dataclasses.dataclass
class Fetched:
    """What `fetch` did.

    Attributes:
      new: files that were fetched.
      kept: files that were there already and right (those of an archive: that were there).
      by_hand: files that are not there and have no hash -> where to get them; "" if unknown.
    """

    new: list[str]
    kept: list[str]
    by_hand: dict[str, str]


def fetch(
    names: Sequence[str],
    directory: epath.PathLike,
    sources: Sequence[Upstream],
    sums: Mapping[str, str],
) -> Fetched:
    """Brings the files `names` into `directory`, each whole or not at all.

    Raises:
      UserError: a file cannot be had, or is not the one that was pinned.
    """
    root, done = epath.Path(directory), Fetched([], [], {})
    archives: dict[str, list[tuple[str, Upstream]]] = {}
    for name in names:
        source, file = source_of(name, sources), packed(name, sums)
        there = [path for each in (name, f"{name}.gz") if (path := root / each).exists()]
        if source and file and not source.sha256:
            if (root / file).exists() and _digest(root / file) == sums[file]:
                done.kept.append(file)
                continue
            with _download(source.place(file), sums[file], file) as (content, _):
                _write(root / file, content)
            done.new.append(file)
        elif there:
            done.kept.append(name)
        elif source and source.sha256:
            archives.setdefault(source.url, []).append((name, source))
        else:
            done.by_hand[name] = source.url if source else ""
    for url, wanted in archives.items():
        with _download(url, wanted[0][1].sha256, url.rsplit("/", 1)[-1]) as (content, where):
            for name, source in wanted:
                _extract(content, where, source.place(name), root / name)
                done.new.append(name)
    return done


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _download(url: str, sha256: str, name: str) -> Iterator[tuple[IO[bytes], str]]:
    """The content of `url`, once it has proved to be the right one."""
    found, size = hashlib.sha256(), 0
    with tempfile.TemporaryFile() as content:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
                expected = int(response.headers.get("Content-Length") or -1)
                while chunk := response.read(_CHUNK):
                    found.update(chunk)
                    size += len(chunk)
                    content.write(chunk)
        except urllib.error.HTTPError as error:
            raise UserError(f"{name}: {url} answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"{name}: {url} cannot be read ({error}); try again") from error
        if 0 <= size < expected:
            raise UserError(f"{name}: {url} broke off after {size} of {expected} bytes; try again")
        if found.hexdigest() != sha256:
            raise UserError(
                f"{name}: expected SHA-256 {sha256}, found {found.hexdigest()} at {url}; "
                "nothing was written"
            )
        content.seek(0)
        yield content, url


def _write(path: epath.Path, content: IO[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("wb") as file:
        shutil.copyfileobj(content, file)
    partial.replace(path)


def _extract(archive: IO[bytes], url: str, inside: str, path: epath.Path) -> None:
    """One file of an archive, or all below a folder of it."""
    archive.seek(0)
    found, folder = False, path.with_name(f".partial-{path.name}")
    with contextlib.ExitStack() as stack:
        members: Iterator[tuple[str, IO[bytes] | None]]
        if zipfile.is_zipfile(archive):
            opened = stack.enter_context(zipfile.ZipFile(archive))
            members = ((name, opened.open(name)) for name in opened.namelist()
                       if not name.endswith("/"))  # fmt: skip
        else:
            archive.seek(0)
            tar = stack.enter_context(tarfile.open(fileobj=archive))
            members = ((member.name, tar.extractfile(member)) for member in tar if member.isfile())
        for name, content in members:
            name = str(PurePosixPath(name))  # some begin with ./
            if content and ".." not in name and (name == inside or name.startswith(f"{inside}/")):
                _write(folder / name[len(inside) + 1 :] if name != inside else path, content)
                found = True
    if folder.exists():
        folder.replace(path)
    if not found:
        raise UserError(f"{path.name}: {url} holds no {inside}")
