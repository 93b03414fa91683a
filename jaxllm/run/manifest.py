"""The manifest, `checkpoints.jsonl`: one line per checkpoint, in the order of saving."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import JsonLines

# Kinds of checkpoints that hold parameters alone.
IMPORTED, AVERAGE = "imported", "average"


@dataclasses.dataclass(frozen=True)
class ManifestEntry:
    """The metadata of one checkpoint, readable without opening it."""

    step: int  # updates done
    tokens: int  # seen so far, padding included
    flops: float  # of training so far, 6 · parameters · tokens
    learning_rate: float | None  # of the last update; None at step 0
    loss: float | None  # mean over the tokens of the last update; None at step 0
    data_position: int  # global index of the next sequence
    dtype: str  # of the saved parameters
    wall_time: float  # start of the save, in Unix seconds
    wall_seconds: float  # time spent by all processes of the run until then
    code_version: str  # version of jaxllm, with the commit in a git checkout
    restarts: int  # before the save
    # 'scheduled', 'final', 'preempted' (saved to resume from; not scored), 'branched' (the first
    # line of a branch), 'imported', or 'average' (of other checkpoints)
    kind: str
    domain_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)  # seen of each
    # Times that each domain of the mixture at this step has been read since the run began.
    domain_epochs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    parent: str | None = None  # of kind 'branched': RUN@STEP, where this run begins
    stage: int = 0  # of which it is a step, from 1; 0 in a run without stages
    sequences: str = ""  # fingerprint of the training sequences at this step
    spike: bool = False  # whether the loss was above its limit (`training.rollback`)
    skipped_steps: int = 0  # so far, without an update: `tokens` and `flops` count them
    rollbacks: int = 0  # lines of rollbacks.jsonl that the run has followed


class Rollback(NamedTuple):
    """A line of rollbacks.jsonl: a stretch of steps that a run passes over, without updates."""

    step: int  # of the checkpoint from which it went on; those saved later until now are abandoned
    first: int  # step of the stretch
    last: int
    by: str  # 'divergence', 'hand' (--skip_steps), or 'parent' (of a branch)
    reason: str


_NUMBERS = ("tokens", "flops", "data_position", "wall_time", "wall_seconds", "restarts")


def entries(lines: JsonLines) -> list[ManifestEntry]:
    """The checkpoints of a manifest by step, the last line of each; UserError if it is too old."""
    fields = [field.name for field in dataclasses.fields(ManifestEntry)]
    required = fields[: fields.index("domain_tokens")]
    by_step = {}
    for row in lines.read()[0]:
        if missing := [name for name in required if name not in row]:
            raise UserError(
                f"{lines.path} has no {missing[0]!r} at step {row['step']}: an older version of "
                f"jaxllm ({row.get('code_version', 'unknown')}) wrote this run, and only it can "
                "read it"
            )
        for name in (n for n in _NUMBERS if not isinstance(row[n], int | float)):
            raise UserError(f"{lines.path} has {name} = {str(row[name])[:40]!r}: it is damaged")
        by_step[row["step"]] = ManifestEntry(**{name: row[name] for name in fields if name in row})
    return [by_step[step] for step in sorted(by_step)]


def select(
    saved: Sequence[ManifestEntry], steps: str | None, model_dir: epath.PathLike
) -> list[ManifestEntry]:
    """The checkpoints of `steps`, as '100,200', or all but preempted ones; UserError if none."""
    if steps is None:
        chosen = [entry for entry in saved if entry.kind != "preempted"]
        if not chosen:
            raise UserError(f"{model_dir} has no checkpoints to score")
        return chosen
    by_step = {entry.step: entry for entry in saved}
    try:
        numbers = [int(step) for step in steps.split(",")]
    except ValueError as error:
        raise UserError(f"--steps={steps}: write numbers, as --steps=100,200") from error
    for step in numbers:
        if step not in by_step:
            known = ", ".join(map(str, by_step)) or "none"
            raise UserError(f"{model_dir} has no checkpoint of step {step}; it has {known}")
    return [by_step[step] for step in numbers]


def program() -> dict[str, str]:
    """What hosts of one command must have alike: its gin settings and versions."""
    import gin
    import jax

    versions = {"version of jaxllm": code_version(), "JAX": jax.__version__}
    return {"settings": gin.config_str(), **versions}


@functools.cache
def code_version() -> str:
    """`0.1.0`; `0.1.0+<commit>[-dirty]` in a git checkout or a copy of one with a file COMMIT."""
    try:
        version = importlib.metadata.version("jaxllm")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    root = Path(__file__).resolve().parents[2]
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        if (root / ".git").exists():
            commit = subprocess.check_output(
                command, cwd=root, text=True, timeout=5, stderr=subprocess.DEVNULL
            )
            version += f"+{commit.strip()}"
        elif (copied := root / "COMMIT").exists():
            version += f"+{copied.read_text().strip()}"
    except (OSError, subprocess.SubprocessError):
        pass
    return version
