"""Saving a run's state while it goes on, and finding the newest whole state again.

A checkpoint is believed when Orbax has committed its directory, the manifest names it, and it
can be read. Its directory holds two items, so that the model can be read without the rest:

    checkpoints/<step>/model/      the parameters
    checkpoints/<step>/training/   the optimizer state and the step
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from jaxllm.errors import UserError
from jaxllm.run import manifest
from jaxllm.run.config import CheckpointConfig
from jaxllm.run.manifest import Entry
from jaxllm.run.schedule import preserved

MODEL, TRAINING = "model", "training"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint brought back: the two items, its manifest line, and what was sent along."""

    entry: Entry
    model: Any
    training: Any
    carried: Mapping[str, Any]


def available(model_dir: epath.PathLike) -> list[Entry]:
    """The checkpoints of a run that can be believed, by step: committed, and in the manifest."""
    complete = set(ocp.path.step.checkpoint_steps(_directory(model_dir)))
    return [entry for entry in manifest.read(model_dir) if entry.step in complete]


def restore_model(model_dir: epath.PathLike, step: int, abstract: Any) -> Any:
    """The parameters of one checkpoint, on the mesh that the shardings in `abstract` name.

    Args:
      model_dir: the run.
      step: of a checkpoint that `available` lists.
      abstract: tree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
      UserError: no such checkpoint; a parameter that is missing, extra or of another shape; or
        the checkpoint is damaged.
    """
    path = _directory(model_dir) / str(step) / MODEL
    if step not in {entry.step for entry in available(model_dir)}:
        raise UserError(f"there is no checkpoint of step {step} in {model_dir}")
    try:
        return _restore_item(path, abstract, "parameter")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"checkpoint {path.parent} is damaged ({_first_line(error)})") from error


class Checkpoints:
    """The checkpoints of one run: saved in the background, restored strictly."""

    def __init__(
        self,
        model_dir: epath.PathLike,
        config: CheckpointConfig,
        report: Callable[[str], None] = print,
    ) -> None:
        """Opens MODEL_DIR/checkpoints, which need not exist.

        `report` gets a line for the user about each checkpoint that cannot be used.
        """
        self._model_dir = epath.Path(model_dir)
        self._report = report
        self._proved = False  # whether a checkpoint of this run is known to be readable
        self._keep = _Keep(config, {e.step for e in _preempted(manifest.read(model_dir))})
        # Orbax logs its progress and every failure; what matters comes back as exceptions.
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._manager = ocp.CheckpointManager(
            _directory(model_dir),
            item_names=(MODEL, TRAINING),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._keep,
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, entry: Entry, model: Any, training: Any, carried: Mapping[str, Any]) -> None:
        """Starts to save a checkpoint, and returns when the arrays may be overwritten.

        `carried` is small JSON that comes back with the checkpoint. Waits first for a save that
        is still going on.

        Raises:
          UserError: this save, or the one before it, failed: the disk is full, for instance;
            or the first one of a run cannot be read back.
        """
        if entry.kind == "preempted":
            self._keep.preempted.add(entry.step)
        self.wait()
        if jax.process_index() == 0:
            manifest.append(self._model_dir, entry)
        with self._disk_errors():
            self._manager.save(
                entry.step,
                args=ocp.args.Composite(
                    **{
                        MODEL: ocp.args.StandardSave(model),
                        TRAINING: ocp.args.StandardSave(training),
                    }
                ),
                custom_metadata=dict(carried),
            )
        if not self._proved:
            self._prove(entry.step, model, training)

    def resume(self, model: Any, training: Any) -> Restored | None:
        """The newest checkpoint that can be read; None for a run that has none.

        Newer ones that cannot be read are reported and moved to MODEL_DIR/damaged_checkpoints,
        and the manifest forgets them: their steps will be done again.

        Args:
          model: tree of `jax.ShapeDtypeStruct` with shardings, of the parameters.
          training: the same for the optimizer state and the step.

        Raises:
          UserError: the checkpoint is of another model or optimizer, or all are damaged.
        """
        entries = available(self._model_dir)
        unlisted = set(self._manager.all_steps()) - {entry.step for entry in entries}
        if unlisted and not entries:
            raise UserError(
                f"{self._model_dir}/{manifest.FILE_NAME} lists none of the checkpoints "
                f"{sorted(unlisted)} of {self._manager.directory}: bring it back, or move them away"
            )
        for entry in reversed(entries):
            restored = self._try(entry, model, training)
            if restored:
                self._proved = True
                self._forget_after(entry.step)
                return restored
        if entries:
            raise UserError(
                f"none of the {len(entries)} checkpoints of {self._manager.directory} can be read:"
                " move the directory away to start the run again"
            )
        self._forget_after(-1)
        return None

    def wait(self) -> None:
        """Waits until the save that is going on is committed.

        Raises:
          UserError: it failed.
        """
        with self._disk_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees Orbax's threads."""
        with self._disk_errors():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def _prove(self, step: int, model: Any, training: Any) -> None:
        """Reads back what names the arrays of a checkpoint, before the run relies on them.

        Raises:
          UserError: it cannot be read.
        """
        self.wait()
        path = self._manager.directory / str(step)
        problem = "another process cannot read it"
        try:
            _check_item(path / MODEL, model, "parameter")
            _check_item(path / TRAINING, training, "optimizer state")
            self._proved = True
        except Exception as error:  # what a damaged file raises is not documented, and varies
            problem = _first_line(error)
        if not _on_every_process(self._proved):
            raise UserError(
                f"the first checkpoint, {path}, cannot be read back ({problem}): "
                "set MODEL_DIR to another directory"
            )

    def _try(self, entry: Entry, model: Any, training: Any) -> Restored | None:
        path = self._manager.directory / str(entry.step)
        try:
            restored = Restored(
                entry,
                _restore_item(path / MODEL, model, "parameter"),
                _restore_item(path / TRAINING, training, "optimizer state"),
                self._manager.metadata(entry.step).custom_metadata or {},
            )
        except UserError:
            raise
        except Exception as error:  # what a damaged file raises is not documented, and varies
            self._report(f"checkpoint {path} is damaged and not used ({_first_line(error)})")
            restored = None
        return restored if _on_every_process(restored is not None) else None

    def _forget_after(self, step: int) -> None:
        """Makes room for the steps after `step`, which will be done again."""
        later = [s for s in self._manager.all_steps() if s > step]
        if jax.process_index() == 0:
            manifest.keep_until(self._model_dir, step)
            for s in later:
                _move_away(self._manager.directory / str(s), self._model_dir)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("jaxllm: checkpoints moved away")
        if later:
            self._manager.reload()

    def _disk_errors(self) -> _DiskErrors:
        return _DiskErrors(str(self._manager.directory))


@dataclasses.dataclass
class _Keep(ocp.checkpoint_managers.PreservationPolicy):
    """Our rule of what stays, as Orbax asks for it."""

    config: CheckpointConfig
    preempted: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        return preserved(self.config, [info.step for info in checkpoints], self.preempted)


class _DiskErrors:
    """Turns what a failed write raises into one line."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, UserError):
            return
        text = str(error).lower()
        full = any(words in text for words in ("space left", "resource_exhausted", "quota"))
        denied = any(words in text for words in ("permission", "read-only", "input/output error"))
        if full or denied or isinstance(error, OSError):
            reason = "no space is left on the disk" if full else _first_line(error)
            raise UserError(
                f"cannot save to {self._directory}: {reason}; the checkpoints before it are whole"
            ) from error


def check_name(model_dir: epath.PathLike) -> None:
    """Refuses a directory whose path Orbax would take for a pattern, and then not find its files.

    Raises:
      UserError: the absolute path holds one of `[ ] * ?`.
    """
    path = str(_directory(model_dir).parent)
    for character in "[]*?":
        if character in path:
            raise UserError(
                f"MODEL_DIR {path}: its path holds {character!r}, with which no checkpoint could "
                "be read: name it without [ ] * ?"
            )


def check_writable(model_dir: epath.PathLike, bytes_needed: int) -> None:
    """Refuses a MODEL_DIR that cannot take the run's checkpoints, before any work is done.

    Args:
      model_dir: created if it does not exist.
      bytes_needed: what the run will write.

    Raises:
      UserError: it cannot be created or written, or the disk has not that much room; or
        checkpoints could not be read under its name.
    """
    check_name(model_dir)
    path = epath.Path(model_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable.{jax.process_index()}"
        probe.write_text("x" * 4096)
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to MODEL_DIR {path}: {_first_line(error)}") from error
    if "://" in str(path):
        return
    free = shutil.disk_usage(path).free
    if free < bytes_needed:
        raise UserError(
            f"MODEL_DIR {path} has {free / 1e6:,.0f} MB free, and the run's checkpoints will need "
            f"{bytes_needed / 1e6:,.0f} MB: use another disk, or set CheckpointConfig.keep = 'last'"
        )


def _restore_item(path: epath.Path, abstract: Any, noun: str) -> Any:
    _check_item(path, abstract, noun)
    return ocp.StandardCheckpointer().restore(path, abstract)


def _check_item(path: epath.Path, abstract: Any, noun: str) -> None:
    """Raises UserError where a saved item has other arrays than `abstract`, ValueError for none."""
    metadata = ocp.StandardCheckpointer().metadata(path).item_metadata
    found = _arrays(metadata.tree) if metadata else {}
    if not found:
        raise ValueError(f"{path} names no arrays")
    _check_same(path, found, _arrays(abstract), noun)


def _check_same(
    path: epath.Path, found: Mapping[str, Any], wanted: Mapping[str, Any], noun: str
) -> None:
    """Raises UserError that names the first array in which checkpoint and model differ."""
    for name in sorted(wanted.keys() - found.keys()):
        raise UserError(f"checkpoint {path}: {noun} {name} of this run's config is missing in it")
    for name in sorted(found.keys() - wanted.keys()):
        raise UserError(f"checkpoint {path}: it holds a {noun} {name} that this run does not have")
    for name in sorted(wanted):
        there, here = found[name], wanted[name]
        if tuple(there.shape) != tuple(here.shape):
            raise UserError(
                f"checkpoint {path}: {noun} {name} has shape {list(there.shape)} in it, "
                f"and {list(here.shape)} in this run's config"
            )
        if np.dtype(there.dtype) != np.dtype(here.dtype):
            raise UserError(
                f"checkpoint {path}: {noun} {name} is {np.dtype(there.dtype)} in it, "
                f"and {np.dtype(here.dtype)} in this run's config"
            )


def _arrays(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by the name that Orbax gives them, as 'layers/attention/query'."""
    flat = ocp.tree.to_flat_dict(ocp.tree.serialize_tree(tree, keep_empty_nodes=True))
    return {"/".join(map(str, k)): leaf for k, leaf in flat.items() if hasattr(leaf, "shape")}


def _move_away(path: epath.Path, model_dir: epath.Path) -> None:
    target = model_dir / "damaged_checkpoints" / path.name
    target.parent.mkdir(exist_ok=True)
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{path.name}.{number}")
    path.rename(target)


def _on_every_process(success: bool) -> bool:
    """Whether all processes succeeded: one host's unreadable file is every host's."""
    if jax.process_count() == 1:
        return success
    return bool(np.all(multihost_utils.process_allgather(np.array(success))))


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _preempted(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.kind == "preempted"]


def _directory(model_dir: epath.PathLike) -> epath.Path:
    local = "://" not in str(model_dir)
    return epath.Path(os.path.abspath(model_dir) if local else model_dir) / "checkpoints"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
