"""Download the benchmarks' original files into EVAL_DIR and verify their SHA-256.

SOURCES of a benchmark module names the origin of its files. A file without a hash, there or in a
module's SHA256, has to be downloaded by hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from jaxllm.errors import UserError, one_line


@dataclasses.dataclass(frozen=True)
class FileSource:
    """The origin of some files of EVAL_DIR.

    Attributes:
      prefix: common prefix of their names.
      url: upstream replacement of that prefix; or the archive of the files; or, for files
        without a hash, the page to download them from by hand.
      sha256: hash of the archive.
      inside: replacement of the prefix in the archive.
    """

    prefix: str
    url: str
    sha256: str = ""
    inside: str = ""

    def location(self, name: str) -> str:
        """The URL of the file `name`, or the path of that file or folder in the archive."""
        return (self.inside if self.sha256 else self.url) + name.removeprefix(self.prefix)


def github(repository: str, commit: str, folder: str) -> str:
    """The base URL of the files in a folder of a repository."""
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{folder}"


def source_of(name: str, sources: Iterable[FileSource]) -> FileSource | None:
    """The source of file `name`: the one with the longest matching prefix."""
    matching = [source for source in sources if name.startswith(source.prefix)]
    return max(matching, key=lambda source: len(source.prefix), default=None)


def pinned(name: str, sha256: Mapping[str, str]) -> str | None:
    """`name` or `name`.gz, whichever has a hash."""
    return next((each for each in (name, f"{name}.gz") if each in sha256), None)


@dataclasses.dataclass
class DownloadResult:
    """The outcome of a download.

    Attributes:
      downloaded: new files.
      present: existing valid files (for those from an archive: existing files).
      manual: missing files without a hash -> their URL; "" if unknown.
    """

    downloaded: list[str]
    present: list[str]
    manual: dict[str, str]


def download(
    names: Sequence[str],
    directory: epath.PathLike,
    sources: Sequence[FileSource],
    sha256: Mapping[str, str],
) -> DownloadResult:
    """Download the files `names` into `directory`, each atomically.

    Raises:
      UserError: a download fails, or a file's hash is not the pinned one.
    """
    root, result = epath.Path(directory), DownloadResult([], [], {})
    archives: dict[str, list[tuple[str, FileSource]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            source, file = source_of(name, sources), pinned(name, sha256)
            present = any((root / each).exists() for each in (name, f"{name}.gz"))
            if source and file and not source.sha256:
                if (root / file).exists() and _digest(root / file) == sha256[file]:
                    result.present.append(file)
                    continue
                _move(_retrieve(source.location(file), sha256[file], file, scratch), root / file)
                result.downloaded.append(file)
            elif present:
                result.present.append(name)
            elif source and source.sha256:
                archives.setdefault(source.url, []).append((name, source))
            else:
                result.manual[name] = source.url if source else ""
        for number, (url, members) in enumerate(archives.items()):
            label = url.rsplit("/", 1)[-1]
            archive = _retrieve(url, members[0][1].sha256, label, scratch)
            unpacked = _unpack(archive, Path(scratch, f"unpacked-{number}"), label)
            for name, source in members:
                member = unpacked / source.location(name)
                if not member.exists():
                    raise UserError(f"{name}: {url} holds no {source.location(name)}")
                _move(member, root / name)
                result.downloaded.append(name)
    return result


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _retrieve(url: str, sha256: str, name: str, folder: str) -> Path:
    """Download `url` to a verified file below `folder`."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    store = pooch.create(
        folder, base_url="", registry={name: f"sha256:{sha256}"}, urls={name: url},
        retry_if_failed=1,
    )  # fmt: skip
    try:
        return Path(store.fetch(name, downloader=pooch.HTTPDownloader(timeout=60)))
    except requests.HTTPError as error:
        response: Any = error.response
        answer = f"{response.status_code} {response.reason}"
        raise UserError(f"{name}: {url} answers {answer}") from error
    except ValueError as error:
        raise UserError(
            f"{name}: {url} is not the pinned file, nothing was written: {one_line(error)}"
        ) from error
    except OSError as error:
        raise UserError(f"{name}: {url} cannot be read ({one_line(error)}); try again") from error


def _unpack(archive: Path, into: Path, name: str) -> Path:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(into)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(into, filter="data")
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"{name} cannot be unpacked ({one_line(error)})") from error
    return into


def _move(local: Path, target: epath.Path) -> None:
    """Move a file or folder to `target`, which may be in a bucket, atomically."""
    partial = target.with_name(f".partial-{target.name}")
    for file in [local] if local.is_file() else sorted(p for p in local.rglob("*") if p.is_file()):
        place = partial / file.relative_to(local) if file != local else partial
        place.parent.mkdir(parents=True, exist_ok=True)
        epath.Path(file).copy(place, overwrite=True)
    partial.replace(target)
