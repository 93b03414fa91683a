"""Saving the checkpoints of a run, in the background.

Each holds two items, so that the model can be read alone: MODEL, the parameters, and TRAINING.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxllm.io import JsonLines, disk_errors
from jaxllm.run import manifest
from jaxllm.run.checkpoint_schedule import CheckpointConfig, preserved
from jaxllm.run.checksums import of_arrays, with_checksums
from jaxllm.run.layout import MODEL, TRAINING, Layout
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.restore import check_readable
from jaxllm.uploads import allowed


class CheckpointWriter:
    """The writer of a run's checkpoints; saves in the background, deletes by retention policy.

    All of it raises UserError where the disk fails.
    """

    def __init__(self, layout: Layout, config: CheckpointConfig, proven: bool) -> None:
        """Open the checkpoint directory, which need not exist, and remove uncommitted checkpoints.

        `proven`: whether a checkpoint of this run is known to be readable.
        """
        self._layout, self._manifest = layout, JsonLines(layout.manifest)
        self._proven = proven
        entries = manifest.entries(self._manifest)
        preempted = {e.step for e in entries if e.kind == "preempted"}
        self._retention = RetentionPolicy(config, preempted, {e.step for e in entries if e.spike})
        self._manager = _Manager(
            layout.checkpoints,
            item_names=(MODEL, TRAINING),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._retention, cleanup_tmp_directories=True
            ),
        )

    def save(
        self, entry: ManifestEntry, params: Any, training: Any, custom_metadata: Mapping[str, Any]
    ) -> None:
        """Start saving a checkpoint, and return once the arrays may be overwritten.

        Waits for the previous save first, and raises its error; UserError if the run's first one
        cannot be read back. The manifest line is written before the directory: a directory without
        a line is never one of ours, and a line without a committed directory is an interrupted save
        (or a removed checkpoint).
        """
        if entry.kind == "preempted":
            self._retention.preempted.add(entry.step)
        if entry.spike:
            self._retention.spikes.add(entry.step)
        self.wait()
        if jax.process_index() == 0:
            self._manifest.append(dataclasses.asdict(entry))
        items = {MODEL: params, TRAINING: training}
        saves = ocp.args.Composite(**{k: ocp.args.StandardSave(v) for k, v in items.items()})
        metadata = with_checksums(custom_metadata, of_arrays(items))
        with self._disk_errors():
            self._manager.save(entry.step, args=saves, custom_metadata=metadata)
        if not self._proven:
            self.wait()
            check_readable(self._layout.checkpoint(entry.step), params, training)
            self._proven = True

    def wait(self) -> None:
        """Wait until the current save is committed."""
        with self._disk_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and free Orbax's threads; if the lease is lost, do neither."""
        if not allowed(self._layout.checkpoints):
            return
        with self._disk_errors(), contextlib.closing(self._manager):
            self._manager.wait_until_finished()

    def _disk_errors(self) -> contextlib.AbstractContextManager[None]:
        return disk_errors(
            f"save to {self._layout.checkpoints}", "; the checkpoints before it are whole"
        )


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, with preemption left to `jaxllm.training.preemption`.

    JAX's preemption service has one counter: Orbax counts it in steps, ours in calls, and using
    both could miss a SIGTERM.
    """

    def reached_preemption(self, step: int) -> bool:
        """False: `jaxllm.training.preemption` handles it."""
        return False

    def wait_until_finished(self) -> None:
        """Wait for saves and, as Orbax does in `save` alone, for removals of uncommitted ones."""
        if removal := getattr(self, "_cleanup_tmp_directory_future", None):
            removal.result()
        super().wait_until_finished()


@dataclasses.dataclass
class RetentionPolicy(ocp.checkpoint_managers.PreservationPolicy):
    """`jaxllm.run.checkpoint_schedule.preserved` as Orbax's preservation policy."""

    config: CheckpointConfig
    preempted: set[int]
    spikes: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether to keep each of `checkpoints`, oldest first."""
        steps = [info.step for info in checkpoints]
        return preserved(self.config, steps, self.preempted, self.spikes)
