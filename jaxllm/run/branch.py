"""A branch: a run that begins at a checkpoint of another run, its parent.

It takes over the whole state, so that with the parent's settings it goes on bitwise as the parent
did; or the parameters alone, at step 0. Its manifest, trajectory and token losses begin alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jaxllm.errors import UserError
from jaxllm.io import is_remote, location
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.records import RunInfo
from jaxllm.run.restore import RestoredCheckpoint, check_arrays, damages, restore
from jaxllm.run.run import Run

LENGTH = ("rope_theta", "rope_scaling")  # fields that a branch may change, for longer sequences
PARAMS = ":params"  # behind RUN@STEP: the parameters alone


@dataclasses.dataclass(frozen=True)
class Branch:
    """The checkpoint at which a run begins, and what it takes over."""

    parent: Run
    checkpoint: ManifestEntry
    whole: bool  # the whole state, not the parameters alone

    @classmethod
    def open(cls, branch_from: str) -> Branch:
        """The branch of TrainConfig.branch_from; UserError if there is none."""
        model_dir, step = parse(branch_from.removesuffix(PARAMS))
        parent = Run.open(model_dir)
        return cls(parent, parent.select(str(step))[0], not branch_from.endswith(PARAMS))

    @property
    def name(self) -> str:
        """RUN@STEP."""
        return f"{self.parent.path}@{self.checkpoint.step}"

    @property
    def entry(self) -> ManifestEntry:
        """The first line of the branch's manifest."""
        begun = dataclasses.replace(
            self.checkpoint,
            wall_time=time.time(), wall_seconds=0.0, restarts=0, kind="branched", parent=self.name,
        )  # fmt: skip
        if self.whole:
            return begun
        return dataclasses.replace(
            begun, step=0, tokens=0, flops=0.0, learning_rate=None, loss=None, data_position=0,
            domain_tokens={}, domain_epochs={}, skipped_steps=0,
        )  # fmt: skip

    def check(self, params: Any, training: Any, model: Mapping[str, Any]) -> None:
        """Raise UserError if the checkpoint is of another model or optimizer, or damaged.

        The arguments are those of `Run.resume`, without shardings if need be.
        """
        layout, compared = self.parent.layout, {k: v for k, v in model.items() if k not in LENGTH}
        with self._errors():
            taken = training if self.whole else None
            check_arrays(layout, self.checkpoint, params, taken, compared)

    def begin(
        self, run: Run, info: RunInfo, params: Any, training: Any, model: Mapping[str, Any]
    ) -> RestoredCheckpoint:
        """Restore the state of the checkpoint, and begin the manifest and trajectory of `run`.

        All hosts must call it; arguments and errors are those of `check`.
        """
        self.check(params, training, model)
        with self._errors():
            taken = training if self.whole else None
            found = restore(self.parent.layout, self.checkpoint, params, taken)
            found.check()
        ahead = [one._replace(by="parent") for one in self.parent.rollbacks() if self.whole]
        ahead = [r for r in ahead if r.last > self.entry.step and r not in run.rollbacks()]
        run.record_rollbacks(*ahead)  # so that it goes on as its parent did
        entry = dataclasses.replace(self.entry, rollbacks=len(run.rollbacks()))
        if jax.process_index() == 0:
            run.manifest_lines.append(dataclasses.asdict(entry))
            if self.whole:
                records = self.parent.records()
                records = records[records["step"] <= entry.step]
                run.trajectory.write_table(records.assign(run=info.run, family=info.family))
                for name in self.parent.token_set_names():
                    self.parent.token_losses(name).copy(run.token_losses(name), entry.step)
        return dataclasses.replace(found, entry=entry)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with damages(self.name):
                yield
        except UserError as error:
            alone = f"; or take its parameters alone: --branch_from={self.name}{PARAMS}"
            raise UserError(f"{error}{alone if 'optimizer state' in str(error) else ''}") from error


def parse(checkpoint: str, name: str = "branch_from") -> tuple[str, int]:
    """The run directory, absolute, and the step of RUN@STEP; UserError with `name` if malformed."""
    model_dir, at, step = checkpoint.rpartition("@")
    if not (at and model_dir and step.isdigit()):
        raise UserError(f"{name} = {checkpoint}: write RUN@STEP, such as runs/base@1000")
    path = location(model_dir)
    return path if is_remote(path) else os.path.abspath(path), int(step)
