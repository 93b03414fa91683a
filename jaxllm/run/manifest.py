"""The manifest, `checkpoints.jsonl`: one line per checkpoint, in the order of saving."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import subprocess
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import JsonLines


@dataclasses.dataclass(frozen=True)
class ManifestEntry:
    """The metadata of one checkpoint, readable without opening it.

    Attributes:
      step: updates done.
      tokens: tokens seen, padding included.
      flops: training FLOPs so far, 6 · parameters · tokens.
      learning_rate: of the last update; None at step 0.
      loss: mean over the tokens of the last update; None at step 0.
      data_position: global index of the next sequence.
      dtype: dtype of the saved parameters.
      wall_time: start of the save, in Unix seconds.
      wall_seconds: time spent by all processes of the run until then.
      code_version: version of jaxllm, with the commit in a git checkout.
      restarts: number of restarts before the save.
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


def entries(lines: JsonLines) -> list[ManifestEntry]:
    """The checkpoints of a manifest by step; of repeated steps, the last line counts.

    Raises:
      UserError: an older version of jaxllm wrote it.
    """
    fields = {field.name for field in dataclasses.fields(ManifestEntry)}
    found = {}
    for row in lines.read()[0]:
        for name in sorted(fields - row.keys()):
            raise UserError(
                f"{lines.path} has no {name!r} at step {row['step']}: an older version of jaxllm "
                f"({row.get('code_version', 'unknown')}) wrote this run, and only it can read it"
            )
        found[row["step"]] = ManifestEntry(**{name: row[name] for name in fields})
    return [found[step] for step in sorted(found)]


def select(
    saved: Sequence[ManifestEntry], steps: str | None, model_dir: epath.PathLike
) -> list[ManifestEntry]:
    """The checkpoints of `steps`, such as '100,200'; None selects all but preempted ones.

    Raises:
      UserError: there are none, `steps` is malformed, or a step has no checkpoint.
    """
    if steps is None:
        chosen = [entry for entry in saved if entry.kind != "preempted"]
        if not chosen:
            raise UserError(f"{model_dir} has no checkpoints to score")
        return chosen
    by_step = {entry.step: entry for entry in saved}
    try:
        wanted = [int(step) for step in steps.split(",")]
    except ValueError as error:
        raise UserError(f"--steps={steps}: write numbers, as --steps=100,200") from error
    for step in wanted:
        if step not in by_step:
            known = ", ".join(map(str, by_step)) or "none"
            raise UserError(f"{model_dir} has no checkpoint of step {step}; it has {known}")
    return [by_step[step] for step in wanted]


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
