"""The run directory: everything that is written of a run, and its way back.

    run = Run.create(model_dir)             of a trainer: made where it is missing
    run = Run.open(model_dir)               of a reader: must be a run
    run.resume(params, training)            the newest valid checkpoint, with its times
    run.checkpoint_writer(config)           saves the next ones
    run.restore_params(step, model, mesh)   the parameters of one
    run.records(), run.metrics(), run.checkpoints()   tables

Paths are in `run.layout`, records in `run.trajectory`, files of lines in `run.*_lines`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import JsonLines, atomic_write, is_remote
from jaxllm.run import manifest, stored_config
from jaxllm.run.layout import Layout
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.times import TimeBreakdown, restart, stop_line
from jaxllm.run.trajectory import TrajectoryStore

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.models.config import ModelConfig
    from jaxllm.run.checkpoints import CheckpointWriter
    from jaxllm.run.config import CheckpointConfig
    from jaxllm.run.restore import RestoredCheckpoint


@dataclasses.dataclass(frozen=True)
class Resumed:
    """A run as a process finds it.

    Attributes:
      checkpoint: the newest valid one.
      restarts: how often the run has been resumed, with this time.
      previous: what its earlier processes have spent, with what they lost.
    """

    checkpoint: RestoredCheckpoint
    restarts: int
    previous: TimeBreakdown


class Run:
    """One run directory, local or `gs://`; a run that is still going is read as far as it got.

    Attributes:
      layout: the paths.
      trajectory: the records of its scored checkpoints.
      manifest_lines: the manifest, as a file.
      metrics_lines: the logged metrics, as a file.
      restart_lines: the restarts, as a file.
      alarm_lines: the alarms, as a file.
    """

    def __init__(self, model_dir: epath.PathLike) -> None:
        """Names a run directory without looking at it; see `create` and `open`."""
        self.layout = Layout(model_dir)
        self.trajectory = TrajectoryStore(model_dir)
        self.manifest_lines = JsonLines(self.layout.manifest)
        self.metrics_lines = JsonLines(self.layout.metrics)
        self.restart_lines = JsonLines(self.layout.restarts)
        self.alarm_lines = JsonLines(self.layout.alarms)

    @classmethod
    def create(cls, model_dir: epath.PathLike) -> Run:
        """Makes the directory, where it is missing, and tries to write there.

        Raises:
          UserError: it cannot be made or written, or checkpoints could not be read under its name.
        """
        run = cls(model_dir)
        run.layout.check_name()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            probe = run.path / f".writable.{uuid.uuid4().hex}"
            probe.write_text("x" * 4096)
            probe.unlink()
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot write to MODEL_DIR {run.path}: {reason}") from error
        return run

    @classmethod
    def open(cls, model_dir: epath.PathLike) -> Run:
        """Opens a run directory to read it.

        Raises:
          UserError: there is no such directory, or nothing in it comes from a run.
        """
        run = cls(model_dir)
        if not run.path.exists():
            raise UserError(f"{model_dir}: no such directory")
        if not run.path.is_dir():
            raise UserError(f"{model_dir}: a file, not a run directory")
        if not run._holds_a_run():
            runs = [p for p in sorted(run.path.iterdir()) if p.is_dir() and cls(p)._holds_a_run()]
            hint = f"; did you mean {', '.join(map(str, runs[:3]))}?" if runs else ""
            names = [path.name for path in run._evidence()]
            either = f"{', '.join(names[:-1])} or {names[-1]}"
            raise UserError(f"{model_dir}: not a run directory, it has no {either}{hint}")
        return run

    @property
    def path(self) -> epath.Path:
        """MODEL_DIR."""
        return self.layout.root

    def check_space(self, num_bytes: int) -> None:
        """Refuses a disk without room for what the run will write, before any work is done.

        Raises:
          UserError: the disk has not that much room.
        """
        if is_remote(self.path):
            return
        free = shutil.disk_usage(self.path).free
        if free < num_bytes:
            raise UserError(
                f"MODEL_DIR {self.path} has {free / 1e6:,.0f} MB free, and the run's checkpoints "
                f"will need {num_bytes / 1e6:,.0f} MB: use another disk, or set "
                "CheckpointConfig.keep_last"
            )

    # Config

    def config(self) -> str:
        """The operative gin config of the newest start; empty where there is none."""
        return self.layout.config.read_text() if self.layout.config.exists() else ""

    def write_config(self, text: str, step: int = 0) -> list[str]:
        """Writes config.gin, from which the run can be repeated and scored.

        The one before, where it differs, stays as config_until_<step>.gin.

        Returns:
          The bindings that change, as 'TRAIN_STEPS = 200 (was 100)'.
        """
        before = self.config()
        changes = stored_config.changes(before, text) if before else []
        earlier = self.layout.config_until(step)
        if changes and not earlier.exists():
            atomic_write(earlier, before)
        atomic_write(self.layout.config, text)
        return changes

    def note_stop(self, step: int, spent: TimeBreakdown) -> None:
        """Notes what the run has taken, as a process ends in order at a checkpoint."""
        self.restart_lines.append(stop_line(step, spent))

    # Checkpoints

    def entries(self) -> list[ManifestEntry]:
        """The manifest by step: all checkpoints that were begun, also removed ones."""
        return manifest.entries(self.manifest_lines)

    def available(self) -> list[ManifestEntry]:
        """The valid checkpoints by step: committed, and in the manifest."""
        from jaxllm.run.restore import committed_steps

        committed = committed_steps(self.layout)
        return [entry for entry in self.entries() if entry.step in committed]

    def select(self, steps: str | None) -> list[ManifestEntry]:
        """The checkpoints of `steps`, as '100,200'; None: all but those that a preemption saved.

        Raises:
          UserError: there are none, or a step has no checkpoint.
        """
        return manifest.select(self.available(), steps, self.path)

    def restore_params(self, step: int, model: ModelConfig, mesh: Mesh) -> Any:
        """The parameters of a checkpoint, without boxes, sharded over `mesh`.

        Raises:
          UserError: there is no such checkpoint; it is of another model; or it is damaged.
        """
        from jaxllm.models.decoder import abstract_params
        from jaxllm.run.restore import restore_params
        from jaxllm.sharding.rules import abstract_sharded

        self.select(str(step))
        return restore_params(self.layout, step, abstract_sharded(mesh, abstract_params(model)))

    def resume(
        self,
        params: Any,
        training: Any,
        model: Mapping[str, Any] | None = None,
        report: Callable[[str], None] = print,
    ) -> Resumed | None:
        """Brings the run back to its newest valid checkpoint; None where it has none.

        What lies beyond it will be done again and goes: lines of the manifest and the metrics.
        Checkpoints that cannot be read, and records of steps beyond, are moved away. On several
        hosts all call it.

        Args:
          params: tree of `jax.ShapeDtypeStruct` with shardings, of the parameters.
          training: the same of the step and the optimizer state.
          model: what the model computes, by field; None is not compared.
          report: gets a line for the user about each checkpoint that cannot be used.

        Raises:
          UserError: the checkpoint is of another model or optimizer, or all are damaged.
        """
        import jax
        from jax.experimental import multihost_utils

        from jaxllm.run.restore import check_model, restore_newest

        found = restore_newest(self.layout, self.available(), params, training, report)
        entry = found.entry if found else None
        if found and model is not None:
            check_model(self.layout, found, model)
        resumed = None
        if found and entry:
            files = (self.metrics_lines, self.restart_lines)
            spent = found.custom_metadata.get("time", {"wall": entry.wall_seconds})
            again = restart(files, entry.step, entry.restarts, TimeBreakdown(**spent))
            resumed = Resumed(found, again.restarts, again.previous)
        if jax.process_count() > 1:  # every host has read before one of them writes
            multihost_utils.sync_global_devices("jaxllm: run read")
        if jax.process_index() == 0:
            self._forget_after(entry.step if entry else -1)
            if resumed:
                self.restart_lines.append(again.line())
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("jaxllm: run resumed")
        return resumed

    def checkpoint_writer(self, config: CheckpointConfig) -> CheckpointWriter:
        """Saves checkpoints from now on, after `resume`."""
        from jaxllm.run.checkpoints import CheckpointWriter

        return CheckpointWriter(self.layout, config, proven=bool(self.available()))

    def _forget_after(self, step: int) -> None:
        """Makes room for the steps after `step`, which will be done again."""
        from jaxllm.run.restore import committed_steps, move_away

        self.manifest_lines.keep_until(step)
        self.metrics_lines.keep_until(step)
        for later in sorted(committed_steps(self.layout)):
            if later > step:
                move_away(self.layout.checkpoint(later), self.layout.damaged / str(later))
        for later in self.trajectory.steps():
            if later > step:
                folder = self.layout.trajectory / str(later)
                move_away(folder, self.layout.abandoned / str(later))

    # Tables

    @property
    def name(self) -> str:
        """The run's name in its records, or else the directory's."""
        names = self.records()["run"].unique()
        return str(names[0]) if len(names) == 1 else self.path.name

    def records(self) -> pd.DataFrame:
        """The trajectory table; see `jaxllm.run.records.Record` for its columns."""
        return self._records[0]

    def metrics(self) -> pd.DataFrame:
        """A row per logged step, ordered by step; empty when there is none."""
        return self._metrics[0]

    def checkpoints(self) -> pd.DataFrame:
        """A row per checkpoint of the manifest, ordered by step; empty when there is none."""
        return self._checkpoints[0]

    def planned_steps(self) -> int | None:
        """Steps of the run as its config plans it; None where it does not say."""
        text = self.config()
        steps = re.search(r"^TrainConfig\.steps = (\S+)", text, re.MULTILINE)
        if steps and steps[1].startswith("%"):
            steps = re.search(rf"^{steps[1][1:]} = (\S+)", text, re.MULTILINE)
        return int(steps[1]) if steps and steps[1].isdigit() else None

    def planned_tokens(self) -> float:
        """Tokens at the end of the run as its config plans it; NaN where it does not say."""
        steps = self.planned_steps()
        tables = [t for t in (self.checkpoints(), self.metrics()) if "tokens" in t]
        rows = pd.concat(tables)[["step", "tokens"]] if tables else pd.DataFrame({"step": []})
        rows = rows[rows.step > 0]
        if steps is None or not len(rows):
            return math.nan
        return steps * float(rows.tokens.iloc[-1] / rows.step.iloc[-1])

    def problems(self) -> tuple[str, ...]:
        """A line for everything in the directory that could not be read."""
        return self._records[1] + self._metrics[1] + self._checkpoints[1]

    @functools.cached_property
    def _records(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        return self.trajectory.read_with_problems()

    @functools.cached_property
    def _metrics(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        return lines_table(self.metrics_lines)

    @functools.cached_property
    def _checkpoints(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        return lines_table(self.manifest_lines)

    def _evidence(self) -> tuple[epath.Path, ...]:
        return self.layout.trajectory, self.layout.metrics, self.layout.manifest

    def _holds_a_run(self) -> bool:
        return any(path.exists() for path in self._evidence())


def lines_table(lines: JsonLines) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A row per step, ordered, of equal steps the last one; and a line about what is unreadable."""
    rows, broken = lines.read()
    by_step = {row["step"]: row for row in rows}
    if by_step:
        frame = pd.DataFrame([by_step[step] for step in sorted(by_step)])
    else:
        frame = pd.DataFrame({"step": pd.Series(dtype="int64")})
    if not broken:
        return frame, ()
    numbers = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
    plural = "lines" if len(broken) > 1 else "line"
    return frame, (f"{lines.path}: {len(broken)} {plural} not readable as JSON (line {numbers})",)
