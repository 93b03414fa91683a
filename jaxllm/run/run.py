"""The run directory: writing, reading and resuming a run.

Paths are in `run.layout`, records in `run.trajectory`, JSON-lines files in `run.*_lines`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import JsonLines, atomic_write, disk_errors, is_remote
from jaxllm.run import manifest, stored_config
from jaxllm.run.layout import Layout
from jaxllm.run.lease import LeaseLost
from jaxllm.run.manifest import ManifestEntry, Rollback
from jaxllm.run.times import TimeBreakdown, before_restart
from jaxllm.run.token_losses import TokenLosses, token_set_names
from jaxllm.run.trajectory import TrajectoryStore
from jaxllm.runtime import raise_together
from jaxllm.uploads import UPLOAD_SECONDS, allowed

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.models.config import ModelConfig
    from jaxllm.run.checkpoint_schedule import CheckpointConfig
    from jaxllm.run.checkpoints import CheckpointWriter
    from jaxllm.run.restore import RestoredCheckpoint

SIMILARITY = ("token_set", "checkpoint", "other", "layer", "other_layer", "cka", "svcca")  # columns


@dataclasses.dataclass(frozen=True)
class Resumed:
    """A resumed run."""

    checkpoint: RestoredCheckpoint  # the newest valid one
    restarts: int  # this one included
    previous: TimeBreakdown  # time of the earlier processes, lost time included


class Run:
    """One run directory, local or `gs://`; a run in progress can be read."""

    def __init__(self, model_dir: epath.PathLike) -> None:
        """Name a run directory without accessing it; see `create` and `open`."""
        self.layout = Layout(model_dir)
        self.path = self.layout.root  # MODEL_DIR
        self.trajectory = TrajectoryStore(model_dir)
        self.manifest_lines = JsonLines(self.layout.manifest)
        self.metrics_lines = JsonLines(self.layout.metrics, UPLOAD_SECONDS)
        self.restart_lines = JsonLines(self.layout.restarts)
        self.alarm_lines = JsonLines(self.layout.alarms)
        self.skipped_lines = JsonLines(self.layout.skipped)
        self.rollback_lines = JsonLines(self.layout.rollbacks)

    @classmethod
    def create(cls, model_dir: epath.PathLike) -> Run:
        """Create the directory if it is missing; UserError if it is not writable or ill-named."""
        run = cls(model_dir)
        run.layout.check_name()
        with disk_errors(f"write to MODEL_DIR {run.path}"):
            run.path.mkdir(parents=True, exist_ok=True)
            probe = run.path / f".writable.{uuid.uuid4().hex}"
            atomic_write(probe, "x" * 4096)
            probe.unlink()
        return run

    @classmethod
    def open(cls, model_dir: epath.PathLike) -> Run:
        """Open a run directory for reading; UserError if it is none."""
        run = cls(model_dir)
        if not run.path.is_dir():
            what = "a file, not a run directory" if run.path.exists() else "no such directory"
            raise UserError(f"{model_dir}: {what}")
        if not run._holds_a_run():
            runs = [p for p in sorted(run.path.iterdir()) if p.is_dir() and cls(p)._holds_a_run()]
            hint = f"; did you mean {', '.join(map(str, runs[:3]))}?" if runs else ""
            lacks = "it has no trajectory, metrics.jsonl or checkpoints.jsonl"
            raise UserError(f"{model_dir}: not a run directory, {lacks}{hint}")
        return run

    def check_space(self, num_bytes: int) -> None:
        """Raise UserError if fewer than `num_bytes` are free on the disk."""
        free = math.inf if is_remote(self.path) else shutil.disk_usage(self.path).free
        if free < num_bytes:
            raise UserError(
                f"MODEL_DIR {self.path} has {free / 1e6:,.0f} MB free, and the run's checkpoints "
                f"will need {num_bytes / 1e6:,.0f} MB: use another disk, or set "
                "CheckpointConfig.keep_last"
            )

    # Config

    def config(self) -> str:
        """The gin config of the newest start; empty if there is none, UserError if damaged."""
        return stored_config.read(self.layout.config)

    _config = property(lambda self: stored_config.readable(self.layout.config)[0])

    def settings(self) -> dict[str, Any]:
        """The values that the run's config binds; none of a damaged config."""
        return stored_config.settings(self._config)

    def mixture(self) -> dict[str, float]:
        """Domain -> share of the training sequences; empty where the config states none."""
        return stored_config.mixture(self._config)

    def write_config(self, text: str, step: int = 0) -> list[str]:
        """Write config.gin, and return the changed bindings, as 'TRAIN_STEPS = 200 (was 100)'.

        The previous one, if it differs, is saved as config_until_<step>.gin.
        """
        before = self._config
        changes = stored_config.changes(before, text) if before else []
        earlier = self.layout.config_until(step)
        if changes and not earlier.exists():
            atomic_write(earlier, before)
        atomic_write(self.layout.config, stored_config.with_checksum(text))
        return changes

    # Checkpoints

    def entries(self) -> list[ManifestEntry]:
        """The manifest by step: every checkpoint begun, removed ones included."""
        return manifest.entries(self.manifest_lines)

    def available(self) -> list[ManifestEntry]:
        """The valid checkpoints by step: committed, in the manifest, and in the run's record."""
        from jaxllm.run.restore import committed_steps

        committed = committed_steps(self.layout)
        return [entry for entry in self.record() if entry.step in committed]

    def record(self) -> list[ManifestEntry]:
        """The `entries` without those that a rollback has abandoned."""
        all_of = self.rollbacks()
        return [e for e in self.entries() if all(e.step <= r.step for r in all_of[e.rollbacks :])]

    def rollbacks(self) -> list[Rollback]:
        """The stretches of steps that the run passes over, in the order of their recording."""
        rows = self.rollback_lines.read()[0]
        try:
            return [Rollback(**{name: row[name] for name in Rollback._fields}) for row in rows]
        except KeyError as error:
            raise UserError(f"{self.layout.rollbacks} has a line without {error}") from error

    def passed_over(self) -> set[int]:
        """The steps of these stretches."""
        return {step for one in self.rollbacks() for step in range(one.first, one.last + 1)}

    def pass_over(self, first: int, last: int, by: str, reason: str = "") -> Rollback:
        """Record a stretch to pass over, from the newest good checkpoint before it.

        Later checkpoints are valid no more. All hosts must call it; UserError if there is none.
        """
        saved = self.available()
        begun = [entry for entry in self.entries() if entry.kind == "branched"]  # from its parent
        good = [e.step for e in (*begun, *saved) if e.step < first and not e.spike]
        if saved and not good:
            raise UserError(f"{self.path} has no checkpoint before step {first} and any spike")
        row = Rollback(max(good, default=0), first, last, by, reason)
        self.record_rollbacks(row)
        return row

    def record_rollbacks(self, *rows: Rollback) -> None:
        """Append to rollbacks.jsonl; all hosts must call it, and read the same afterwards."""

        def write() -> None:
            self.rollback_lines.keep_until(sys.maxsize)  # drops what a kill has left of a line
            for row in rows:
                self.rollback_lines.append(row._asdict())

        _on_first(write, self.layout)

    def select(self, steps: str | None) -> list[ManifestEntry]:
        """`manifest.select` among the valid checkpoints."""
        return manifest.select(self.available(), steps, self.path)

    def restore_params(self, step: int, model: ModelConfig, mesh: Mesh) -> Any:
        """The parameters of a checkpoint, unboxed, sharded over `mesh`; UserError if unusable."""
        from jaxllm.models.decoder import abstract_params
        from jaxllm.run.restore import restore_params
        from jaxllm.sharding.rules import abstract_sharded

        self.select(str(step))
        return restore_params(self.layout, step, abstract_sharded(mesh, abstract_params(model)))

    def resume(
        self,
        params: Any,
        training: Any,
        model: Callable[[int], Mapping[str, Any]] | None = None,
        report: Callable[[str], None] = print,
    ) -> Resumed | None:
        """Restore the newest valid checkpoint; None if there is none.

        Later steps will be trained again: their lines in the manifest and the metrics are dropped,
        their records and unreadable checkpoints moved away. All hosts must call it. Arguments and
        errors are those of `restore_newest`.
        """
        from jaxllm.run.restore import committed_steps, restore_newest

        resumed = None
        for lines in (self.manifest_lines, self.metrics_lines, self.restart_lines):
            for problem in lines.table()[1] if lines.read()[1] else ():
                report(problem)
        saved, newest = self.available(), None
        abandoned = committed_steps(self.layout) & {entry.step for entry in self.entries()}
        if saved or not abandoned:
            newest = restore_newest(self.layout, saved, params, training, report, model)
        if newest:
            entry = newest.entry
            if entry.rollbacks > len(self.rollbacks()):
                raise UserError(f"{self.layout.rollbacks} has lost lines: bring it back")
            rows = self.metrics_lines.read()[0] + self.restart_lines.read()[0]
            restarts = max([entry.restarts, *(row.get("restarts", 0) for row in rows)]) + 1
            spent = newest.custom_metadata.get("time", {"wall": entry.wall_seconds})
            previous, lost = before_restart(rows, entry.step, TimeBreakdown(**spent))
            resumed = Resumed(newest, restarts, previous)

        def write() -> None:
            self._forget_after(entry.step if resumed else -1)
            if resumed:
                spent = {"wall_seconds": previous.wall, "lost_seconds": lost}
                row = {"step": entry.step, "restarts": restarts, "wall_time": time.time()}
                self.restart_lines.append(row | spent)

        _on_first(write, self.layout)
        return resumed

    def note_stop(self, step: int, spent: TimeBreakdown) -> None:
        """Record the time of the run so far, as a process ends in order at a checkpoint."""
        stopped = dataclasses.asdict(spent)
        self.restart_lines.append({"step": step, "stopped": stopped, "wall_seconds": spent.wall})

    def checkpoint_writer(self, config: CheckpointConfig) -> CheckpointWriter:
        """The writer of further checkpoints; call it after `resume`."""
        from jaxllm.run.checkpoints import CheckpointWriter

        return CheckpointWriter(self.layout, config, proven=bool(self.available()))

    def _forget_after(self, step: int) -> None:
        """Drop or move away later lines, checkpoints and records, to be produced again."""
        from jaxllm.run.restore import committed_steps, move_away

        self.manifest_lines.keep_until(step)
        self.metrics_lines.keep_until(step)
        self.skipped_lines.keep_until(step)
        layout = self.layout
        for later in sorted(committed_steps(layout)):
            if later > step:
                move_away(layout.checkpoint(later), layout.damaged / str(later))
        abandoned = layout.abandoned / f"{time.time():.0f}"
        for later in self.trajectory.steps():
            if later > step:
                self.trajectory.abandon(later, abandoned)
        for name in self.token_set_names():
            self.token_losses(name).abandon(step, abandoned / layout.token_losses.name)

    # Tables

    @property
    def name(self) -> str:
        """The run's name in its records, if unique, or else the directory's."""
        names = self.records()["run"].unique()
        return str(names[0]) if len(names) == 1 else self.path.name

    def records(self) -> pd.DataFrame:
        """The trajectory table; see `jaxllm.run.records.Record` for its columns."""
        return self._records[0]

    def token_set_names(self) -> tuple[str, ...]:
        """The names of the token sets with losses; see `token_losses`."""
        return token_set_names(self.layout)

    def token_losses(self, name: str) -> TokenLosses:
        """The loss of each token of a token set at the checkpoints."""
        return TokenLosses(self.layout, name, self._saved)

    def similarities(self, notes: list[str]) -> Iterator[pd.DataFrame]:
        """The comparisons of layers, with columns `SIMILARITY`; notes which files are none."""
        for file in sorted(self.layout.similarity("").glob("*.csv")):
            try:
                yield pd.read_csv(io.StringIO(file.read_text()), usecols=SIMILARITY)
            except ValueError as error:
                notes.append(f"{file} has no similarities of layers: {error}.")

    def metrics(self) -> pd.DataFrame:
        """A row per logged step, ordered by step; empty when there is none."""
        return self._metrics[0]

    def checkpoints(self) -> pd.DataFrame:
        """A row per checkpoint of the manifest, ordered by step; empty when there is none."""
        return self._checkpoints[0]

    def problems(self) -> tuple[str, ...]:
        """A line per unreadable or partly unreadable file."""
        of_config = stored_config.readable(self.layout.config)[1]
        return self._records[1] + self._metrics[1] + self._checkpoints[1] + of_config

    def planned_steps(self) -> int | None:
        """Total steps in the run's config; None if it does not state them."""
        steps = self.settings().get("TrainConfig.steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    def planned_tokens(self) -> float:
        """Tokens at the end of the run by its config; NaN if unknown."""
        steps = self.planned_steps()
        if steps and self.settings().get("TrainConfig.stages"):
            return _tokens_of_stages(self.settings(), steps)
        for rows in (self.metrics(), self.checkpoints()):
            if steps and "tokens" in rows and (rows.step > 0).any():
                return steps * float(rows.tokens.iloc[-1] / rows.step.iloc[-1])
        return math.nan

    def domain_weights(self) -> dict[str, float]:
        """The average weights that DoReMi gave to the domains; empty of a run without it."""
        rows, name = self.metrics_lines.read()[0], "average_domain_weight/"
        newest = max(rows, key=lambda row: row["step"], default={})
        return {k.removeprefix(name): v for k, v in newest.items() if k.startswith(name)}

    def write_domain_weights(self) -> str:
        """Write them as the gin binding of a mixture, and return it; empty where there are none."""
        rounded = {domain: round(weight, 6) for domain, weight in self.domain_weights().items()}
        binding = f"DataConfig.weights = {rounded!r}\n" if rounded else ""
        if binding:
            atomic_write(self.layout.domain_weights, binding)
        return binding

    @functools.cached_property
    def _records(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        return self.trajectory.read_with_problems(self._saved)

    @property
    def _saved(self) -> dict[int, float]:
        """The `wall_time` of each checkpoint of the manifest."""
        rows = self.manifest_lines.read()[0]
        return {row["step"]: row["wall_time"] for row in rows if "wall_time" in row}

    _metrics = functools.cached_property(lambda self: self.metrics_lines.table())
    _checkpoints = functools.cached_property(lambda self: self.manifest_lines.table())

    def _holds_a_run(self) -> bool:
        paths = (self.layout.trajectory, self.layout.metrics, self.layout.manifest)
        return any(path.exists() for path in paths)


def _tokens_of_stages(settings: Mapping[str, Any], steps: int) -> float:
    """Tokens of a run in stages, the last of which may last until its end."""
    tokens, left = 0.0, float(steps)
    for stage in settings["TrainConfig.stages"]:
        batch = stage.get("batch_size") or settings["DataConfig.batch_size"]
        batch *= stage.get("sequence_length") or settings["DataConfig.sequence_length"]
        own = stage.get("tokens") or left * batch
        tokens, left = tokens + own, left - own / batch
    return tokens


def _on_first(write: Callable[[], None], layout: Layout) -> None:
    """Write on the first host, after all have read; a UserError of it, as LeaseLost, is of all."""
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    if jax.process_count() > 1:
        sync_global_devices("jaxllm: run read")
    refusal = None
    try:
        if not allowed(layout.manifest):
            raise LeaseLost(f"another process may write to {layout.root} now: this one ends")
        if jax.process_index() == 0:
            with disk_errors(f"write to {layout.root}"):
                write()
    except UserError as error:
        refusal = error
    raise_together(refusal)
