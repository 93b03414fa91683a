"""Restoring checkpoints: with strict shapes, onto any mesh, skipping damaged ones.

A checkpoint is valid when Orbax has committed its directory, the manifest lists it, and it can be
read. `params` and `training` (the step and the optimizer state) are trees of `jax.ShapeDtypeStruct`
with shardings wherever they say what is to be restored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import fsspec
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxllm.errors import UserError, first_line
from jaxllm.io import disk_errors, is_remote
from jaxllm.run import checksums
from jaxllm.run.checksums import array_name
from jaxllm.run.layout import MODEL, TRAINING, Layout
from jaxllm.run.manifest import AVERAGE, IMPORTED, ManifestEntry
from jaxllm.runtime import on_any_process

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RestoredCheckpoint:
    """A restored checkpoint: its manifest line, its arrays, and small JSON saved with them."""

    entry: ManifestEntry
    params: Any
    training: Any  # None of a branch that takes the parameters alone
    custom_metadata: Json

    def check(self) -> None:
        """Raise ValueError if arrays are not as saved; all processes must call it."""
        checksums.check_arrays({MODEL: self.params, TRAINING: self.training}, self.custom_metadata)


def committed_steps(layout: Layout) -> set[int]:
    """The steps whose directories Orbax has committed."""
    return set(ocp.path.step.checkpoint_steps(layout.checkpoints))


@contextlib.contextmanager
def damages(checkpoint: object) -> Iterator[None]:
    """Convert errors inside to a UserError that the checkpoint is damaged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # exceptions of damaged files are undocumented, and vary
        raise UserError(f"checkpoint {checkpoint} is damaged ({first_line(error)})") from error


class SavedArrays:
    """The arrays of a saved item, read one at a time; by names such as 'layers/attention/query'."""

    def __init__(self, path: epath.Path) -> None:
        """Read the metadata; UserError if it is damaged."""
        self.path, self._checkpointer = path, ocp.PyTreeCheckpointer()
        with damages(path.parent):
            self._tree = self._checkpointer.metadata(path).item_metadata.tree
            leaves = jax.tree_util.tree_leaves_with_path(self._tree)
            self.shapes = {array_name(key): tuple(leaf.shape) for key, leaf in leaves}
            self._json = _json(path.parent)

    def read(self, name: str) -> np.ndarray:
        """One array; UserError if it cannot be read."""
        one = lambda key, leaf: leaf if array_name(key) == name else ocp.PLACEHOLDER
        with damages(self.path.parent):
            item = jax.tree_util.tree_map_with_path(one, self._tree)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), self._tree)
            arguments = ocp.args.PyTreeRestore(item, as_numpy)
            restored = self._checkpointer.restore(self.path, arguments)
            leaves = jax.tree_util.tree_leaves_with_path(restored)
            array = next(leaf for key, leaf in leaves if array_name(key) == name)
            checksums.check_arrays({self.path.name: {name: array}}, self._json)
            return array


def restore_params(layout: Layout, step: int, params: Any) -> Any:
    """The parameters of one valid checkpoint, sharded as in `params`; UserError if damaged."""
    path = layout.checkpoint(step)
    with damages(path), _bucket_errors(path):
        _check_item(path / MODEL, params, "parameter")
        saved = _json(path)
        restored = ocp.StandardCheckpointer().restore(path / MODEL, params)
        checksums.check_arrays({MODEL: restored}, saved)
        return restored


def restore_newest(
    layout: Layout,
    entries: Sequence[ManifestEntry],
    params: Any,
    training: Any,
    report: Callable[[str], None],
    model: Callable[[int], Json] | None = None,
) -> RestoredCheckpoint | None:
    """The newest readable checkpoint of `entries`, the committed ones; `report`s unreadable ones.

    `model` is what a step's model is compared with. UserError if the checkpoint is of another model
    or optimizer; all are damaged; or the manifest lists none of the existing checkpoints.
    """
    unlisted = committed_steps(layout) - {entry.step for entry in entries}
    if unlisted and not entries:
        raise UserError(
            f"{layout.manifest} lists none of the checkpoints "
            f"{sorted(unlisted)} of {layout.checkpoints}: bring it back, or move them away"
        )
    for entry in reversed(entries):
        restored, path = None, layout.checkpoint(entry.step)
        try:
            with _bucket_errors(path):
                restored = restore(layout, entry, params, training, model and model(entry.step))
        except UserError:
            raise
        except Exception as error:
            report(f"checkpoint {path} is damaged and not used ({first_line(error)})")
        if on_any_process(restored is None):
            continue
        assert restored
        try:
            restored.check()
            return restored
        except ValueError as error:  # on all processes alike
            report(f"checkpoint {path} is damaged and not used ({error})")
    if entries:
        raise UserError(
            f"none of the {len(entries)} checkpoints of {layout.checkpoints} can be read:"
            " move the directory away to start the run again"
        )
    return None


def restore(
    layout: Layout, entry: ManifestEntry, params: Any, training: Any, model: Json | None = None
) -> RestoredCheckpoint:
    """One committed checkpoint, to be `check`ed; its parameters alone if `training` is None.

    UserError if it is of another model or optimizer, or has no training state; any Exception if it
    cannot be read.
    """
    path, restorer = layout.checkpoint(entry.step), ocp.StandardCheckpointer()
    metadata = check_arrays(layout, entry, params, training, model)
    return RestoredCheckpoint(
        entry,
        restorer.restore(path / MODEL, params),
        training and restorer.restore(path / TRAINING, training),
        metadata,
    )


def check_arrays(
    layout: Layout, entry: ManifestEntry, params: Any, training: Any, model: Json | None
) -> Json:
    """The JSON saved with a checkpoint of this model with these arrays; raises as `restore`."""
    path = layout.checkpoint(entry.step)
    if training is not None and entry.kind in (IMPORTED, AVERAGE):
        raise UserError(
            f"checkpoint {path} has parameters alone, without the state of an optimizer: begin "
            f"another run from it, with --branch_from={layout.root}@{entry.step}:params"
        )
    _check_model(path, found := _json(path), model or {})
    _check_item(path / MODEL, params, "parameter")
    if training is not None:
        _check_item(path / TRAINING, training, "optimizer state")
    return found


def saved_json(layout: Layout, step: int) -> Json:
    """The JSON saved with a checkpoint; UserError if it is damaged."""
    with damages(path := layout.checkpoint(step)):
        return _json(path)


def _json(path: epath.Path) -> dict[str, Any]:
    items = {name: ocp.StandardCheckpointHandler() for name in (MODEL, TRAINING)}
    handler = ocp.CompositeCheckpointHandler(**items)
    found = ocp.Checkpointer(handler).metadata(path).custom_metadata
    alone = not found and not (path / TRAINING).exists()  # parameters, by an older version
    return {} if alone else checksums.check_json(found)


def _check_model(path: epath.Path, metadata: Json, model: Json) -> None:
    """Raise UserError if a field of the `model` differs from the checkpoint's `metadata`."""
    trained = metadata.get("model", model)
    for name in sorted(model):
        if trained.get(name) != model[name]:
            raise UserError(
                f"checkpoint {path} is of a model with {name} = {trained.get(name)!r}, and this "
                f"run's config says {model[name]!r}: set it back, or take another MODEL_DIR"
            )


def check_readable(path: epath.Path, params: Any, training: Any) -> None:
    """Raise UserError if a host cannot read back the array metadata of the first checkpoint."""
    problem = ""
    try:
        _check_item(path / MODEL, params, "parameter")
        _check_item(path / TRAINING, training, "optimizer state")
    except Exception as error:
        problem = first_line(error)
    if on_any_process(bool(problem)):
        raise UserError(
            f"the first checkpoint, {path}, cannot be read back "
            f"({problem or 'another process cannot read it'}): set MODEL_DIR to another directory"
        )


def move_away(path: epath.Path, target: epath.Path) -> None:
    """Move a directory to `target`, or to `target.2`, `.3`, … if that exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    names = (target.name, *(f"{target.name}.{number}" for number in range(2, 10_000)))
    target = next(new for name in names if not (new := target.with_name(name)).exists())
    if not is_remote(path):
        path.rename(target)
        return
    system, source = fsspec.core.url_to_fs(os.fspath(path))
    system.mv(source, os.fspath(target), recursive=True)  # epath wants its directory to exist


def _bucket_errors(path: epath.Path) -> contextlib.AbstractContextManager[None]:
    """Convert those of a bucket to UserError: that it does not answer is no damage."""
    return disk_errors(f"read {path}", errnos=()) if is_remote(path) else contextlib.nullcontext()


def _check_item(path: epath.Path, abstract: Any, noun: str) -> None:
    """Raise UserError if a saved item has other arrays than `abstract`, ValueError if none."""
    metadata = ocp.StandardCheckpointer().metadata(path).item_metadata
    saved, expected = _arrays(metadata.tree) if metadata else {}, _arrays(abstract)
    if not saved:
        raise ValueError(f"{path} names no arrays")
    for name in sorted(saved.keys() | expected.keys()):
        there, here = _described(saved.get(name)), _described(expected.get(name))
        if there != here:
            raise UserError(
                f"checkpoint {path}: {noun} {name} is {there} in it, and {here} in this run's model"
            )


def _described(array: Any) -> str:
    return "missing" if array is None else f"{np.dtype(array.dtype)} {list(array.shape)}"


def _arrays(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by Orbax's names, such as 'layers/attention/query'."""
    flat = ocp.tree.to_flat_dict(ocp.tree.serialize_tree(tree, keep_empty_nodes=True))
    return {"/".join(map(str, k)): leaf for k, leaf in flat.items() if hasattr(leaf, "shape")}
