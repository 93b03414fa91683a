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
    """The origin of some files of EVAL_DIR."""

    prefix: str  # common prefix of their names
    # upstream replacement of that prefix; or the archive of the files; or, for files without a
    # hash, the page to download them from by hand
    url: str
    sha256: str = ""  # hash of the archive
    inside: str = ""  # replacement of the prefix in the archive

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
    """New files, existing valid files, and the URL ("" if unknown) of files to get by hand."""

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

    UserError if a download fails, or a file's hash is not the pinned one.
    """
    root, result = epath.Path(directory), DownloadResult([], [], {})
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            source, file = source_of(name, sources), pinned(name, sha256) or name
            exists = any((root / each).exists() for each in (name, f"{name}.gz"))
            if source and file in sha256 and not source.sha256:
                if (root / file).exists() and _digest(root / file) == sha256[file]:
                    result.present.append(file)
                    continue
                new = _retrieve(source.location(file), sha256[file], file, scratch)
            elif exists:
                result.present.append(name)
                continue
            elif source and source.sha256:
                file, new = name, _retrieve_member(source, name, scratch)
            else:
                result.manual[name] = source.url if source else ""
                continue
            _move(new, root / file)
            result.downloaded.append(file)
    return result


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _retrieve(url: str, sha256: str, name: str, folder: str) -> Path:
    """Download `url` to a verified file below `folder`, unless it is there."""
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
        reason = f"answers {response.status_code} {response.reason}"
    except ValueError as error:
        reason = f"is not the pinned file, nothing was written: {one_line(error)}"
    except OSError as error:
        reason = f"cannot be read ({one_line(error)}); try again"
    raise UserError(f"{name}: {url} {reason}")


def _retrieve_member(source: FileSource, name: str, folder: str) -> Path:
    """Unpack the file or folder `name` of an archive, downloaded once for all of its files."""
    label = source.url.rsplit("/", 1)[-1]
    archive = _retrieve(source.url, source.sha256, label, folder)
    unpacked = archive.with_name(source.sha256)
    if not unpacked.exists():
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(unpacked)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(unpacked, filter="data")
        except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise UserError(f"{label} cannot be unpacked ({one_line(error)})") from error
    member = unpacked / source.location(name)
    if not member.exists():
        raise UserError(f"{name}: {source.url} holds no {source.location(name)}")
    return member


def _move(local: Path, target: epath.Path) -> None:
    """Move a file or folder to `target`, which may be in a bucket, atomically."""
    partial = target.with_name(f".partial-{target.name}")
    for file in [local] if local.is_file() else sorted(p for p in local.rglob("*") if p.is_file()):
        place = partial / file.relative_to(local) if file != local else partial
        place.parent.mkdir(parents=True, exist_ok=True)
        epath.Path(file).copy(place, overwrite=True)
    partial.replace(target)
