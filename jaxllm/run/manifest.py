"""The manifest, `checkpoints.jsonl`: one line per checkpoint, in the order of saving."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

from etils import epath

from jaxllm.run import jsonl

FILE_NAME = "checkpoints.jsonl"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of one checkpoint without opening it.

    Attributes:
      step: updates done.
      tokens: tokens seen, padding included.
      flops: training FLOPs so far, 6 · parameters · tokens.
      learning_rate: of the last update; None at step 0.
      loss: mean over the tokens of the last update; None at step 0.
      data_position: global index of the next sequence: where the input goes on.
      dtype: of the saved parameters.
      wall_time: when the save began, in Unix seconds.
      wall_seconds: time that the run's processes have spent on it until then, restarts included.
      code_version: version of jaxllm, with the commit where it is a git checkout.
      restarts: how often the run had been restarted.
      kind: 'scheduled', 'final', or 'preempted' (saved to resume from; not scored).
    """

    step: int
    tokens: int
    flops: float
    learning_rate: float | None
    loss: float | None
    data_position: int
    dtype: str
    wall_time: float
    wall_seconds: float
    code_version: str
    restarts: int
    kind: str


def append(model_dir: epath.PathLike, entry: Entry) -> None:
    """Adds the line of a checkpoint whose save begins now.

    The line comes first: a directory without a line is then never one of ours, and a line
    without a complete directory is a save that a kill cut off (or one that was not kept).
    """
    jsonl.append(epath.Path(model_dir) / FILE_NAME, dataclasses.asdict(entry))


def read(model_dir: epath.PathLike) -> list[Entry]:
    """The entries of MODEL_DIR's manifest by step; a step's last line counts."""
    rows, _ = jsonl.read(epath.Path(model_dir) / FILE_NAME)
    names = {field.name for field in dataclasses.fields(Entry)}
    entries = {row["step"]: Entry(**_known(row, names)) for row in rows if names <= set(row)}
    return [entries[step] for step in sorted(entries)]


def keep_until(model_dir: epath.PathLike, step: int) -> int:
    """Forgets the checkpoints beyond `step`; returns how many lines went."""
    return jsonl.keep_until(epath.Path(model_dir) / FILE_NAME, step)


def _known(row: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in names}


@functools.cache
def code_version() -> str:
    """`0.1.0`, or `0.1.0+<commit>[-dirty]` in a git checkout."""
    try:
        version = importlib.metadata.version("jaxllm")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return version
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=5, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{commit}"
