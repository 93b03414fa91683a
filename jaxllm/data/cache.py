"""Files that are made once, whole or not at all, however many processes want them at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

PARTIAL = ".partial-"


@contextlib.contextmanager
def publishing(
    target: Path, is_complete: Callable[[Path], bool] = Path.exists
) -> Iterator[Path | None]:
    """Gives an empty directory that becomes `target` when the block ends without an error.

    One process at a time makes a target; another that wants it waits, and then finds it made. A
    process that is killed lets go of its lock, and the next one begins afresh.

    Yields:
      The directory to fill, or None if `target` is there and complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target, wait=True):
        if is_complete(target):
            yield None
            return
        partial = target.with_name(PARTIAL + target.name)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            for file in partial.iterdir():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            if target.exists():
                shutil.rmtree(target)  # damaged since it was published
            os.rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_abandoned(directory: Path) -> None:
    """Removes what killed processes left half-made in `directory`."""
    for partial in directory.glob(f"{PARTIAL}*"):
        with _locked(directory / partial.name.removeprefix(PARTIAL), wait=False) as mine:
            if mine:
                shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(target: Path, wait: bool) -> Iterator[bool]:
    """Holds the lock of `target`; the kernel releases it when this process ends in any way."""
    locks = target.parent / ".locks"
    locks.mkdir(exist_ok=True)
    with open(locks / target.name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
