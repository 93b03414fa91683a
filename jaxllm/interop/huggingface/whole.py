"""Directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxllm.errors import UserError


@contextlib.contextmanager
def whole(target: str | Path) -> Iterator[Path]:
    """An empty directory beside `target` that becomes it when the block ends without an error.

    Raises:
      UserError: `target` exists and is not an empty directory, or the disk refuses or is full.
    """
    if "://" in str(target):
        raise UserError(f"{target}: convert to a local directory, and copy it there")
    target = Path(target).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists already: name a directory that does not")
    partial = target.with_name(f".partial-{target.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, target)
    except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
        if not isinstance(error, OSError) and "space left" not in str(error).lower():
            raise
        reason = getattr(error, "strerror", None) or "no space is left on the disk"
        raise UserError(f"cannot write {target}: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
