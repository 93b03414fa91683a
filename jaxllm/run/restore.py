"""Restoring checkpoints: with strict shapes, onto any mesh, skipping damaged ones.

A checkpoint is valid when Orbax has committed its directory, the manifest lists it, and it can be
read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from jaxllm.errors import UserError
from jaxllm.run.layout import MODEL, TRAINING, Layout
from jaxllm.run.manifest import ManifestEntry


@dataclasses.dataclass(frozen=True)
class RestoredCheckpoint:
    """A restored checkpoint.

    Attributes:
      entry: its manifest line.
      params: the parameters.
      training: the step and the optimizer state.
      custom_metadata: small JSON, saved with the checkpoint.
    """

    entry: ManifestEntry
    params: Any
    training: Any
    custom_metadata: Mapping[str, Any]


def committed_steps(layout: Layout) -> set[int]:
    """The steps whose directories Orbax has committed."""
    return set(ocp.path.step.checkpoint_steps(layout.checkpoints))


def restore_params(layout: Layout, step: int, abstract: Any) -> Any:
    """The parameters of one checkpoint, sharded as in `abstract`.

    Args:
      layout: the run's paths.
      step: step of a valid checkpoint.
      abstract: tree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
      UserError: a parameter is missing, extra or of another shape or dtype; or the checkpoint is
        damaged.
    """
    path = layout.checkpoint(step)
    try:
        return _restore_item(path / MODEL, abstract, "parameter")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"checkpoint {path} is damaged ({first_line(error)})") from error


def restore_newest(
    layout: Layout,
    entries: Sequence[ManifestEntry],
    params: Any,
    training: Any,
    report: Callable[[str], None],
) -> RestoredCheckpoint | None:
    """The newest readable checkpoint of `entries`; None if there are no entries.

    Args:
      layout: the run's paths.
      entries: the committed checkpoints, by step.
      params: tree of `jax.ShapeDtypeStruct` with shardings.
      training: likewise, of the step and the optimizer state.
      report: called with a line for each unreadable checkpoint.

    Raises:
      UserError: the checkpoint is of another model or optimizer; all are damaged; or the manifest
        lists none of the existing checkpoints.
    """
    unlisted = committed_steps(layout) - {entry.step for entry in entries}
    if unlisted and not entries:
        raise UserError(
            f"{layout.manifest} lists none of the checkpoints "
            f"{sorted(unlisted)} of {layout.checkpoints}: bring it back, or move them away"
        )
    for entry in reversed(entries):
        restored = _try(layout, entry, params, training, report)
        if restored:
            return restored
    if entries:
        raise UserError(
            f"none of the {len(entries)} checkpoints of {layout.checkpoints} can be read:"
            " move the directory away to start the run again"
        )
    return None


def check_model(layout: Layout, saved: RestoredCheckpoint, model: Mapping[str, Any]) -> None:
    """Check that the run's model is the one that was trained.

    Raises:
      UserError: a config field that parameter shapes do not reveal has changed.
    """
    trained: Mapping[str, Any] = saved.custom_metadata.get("model", model)
    for name in sorted(model):
        if trained.get(name) != model[name]:
            raise UserError(
                f"checkpoint {layout.checkpoint(saved.entry.step)} is of a model with {name} = "
                f"{trained.get(name)!r}, and this run's config says {model[name]!r}: set it back, "
                "or take another MODEL_DIR"
            )


def check_readable(path: epath.Path, params: Any, training: Any) -> None:
    """Verify that the array metadata of a checkpoint can be read back.

    Raises:
      UserError: it cannot be read, on this or another host.
    """
    problem = ""
    try:
        _check_item(path / MODEL, params, "parameter")
        _check_item(path / TRAINING, training, "optimizer state")
    except Exception as error:  # exceptions of damaged files are undocumented, and vary
        problem = first_line(error)
    if not _on_every_process(not problem):
        raise UserError(
            f"the first checkpoint, {path}, cannot be read back "
            f"({problem or 'another process cannot read it'}): set MODEL_DIR to another directory"
        )


def move_away(path: epath.Path, target: epath.Path) -> None:
    """Move a directory to `target`, or to `target.2`, `.3`, … if that exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    name, number = target.name, 1
    while target.exists():
        number += 1
        target = target.with_name(f"{name}.{number}")
    path.rename(target)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def _try(
    layout: Layout,
    entry: ManifestEntry,
    params: Any,
    training: Any,
    report: Callable[[str], None],
) -> RestoredCheckpoint | None:
    path = layout.checkpoint(entry.step)
    handler = ocp.CompositeCheckpointHandler(MODEL, TRAINING)
    try:
        restored = RestoredCheckpoint(
            entry,
            _restore_item(path / MODEL, params, "parameter"),
            _restore_item(path / TRAINING, training, "optimizer state"),
            ocp.Checkpointer(handler).metadata(path).custom_metadata or {},
        )
    except UserError:
        raise
    except Exception as error:  # exceptions of damaged files are undocumented, and vary
        report(f"checkpoint {path} is damaged and not used ({first_line(error)})")
        restored = None
    return restored if _on_every_process(restored is not None) else None


def _restore_item(path: epath.Path, abstract: Any, noun: str) -> Any:
    _check_item(path, abstract, noun)
    return ocp.StandardCheckpointer().restore(path, abstract)


def _check_item(path: epath.Path, abstract: Any, noun: str) -> None:
    """Raise UserError if a saved item has other arrays than `abstract`, ValueError if none."""
    metadata = ocp.StandardCheckpointer().metadata(path).item_metadata
    saved = _arrays(metadata.tree) if metadata else {}
    if not saved:
        raise ValueError(f"{path} names no arrays")
    _check_same(path, saved, _arrays(abstract), noun)


def _check_same(
    path: epath.Path, saved: Mapping[str, Any], expected: Mapping[str, Any], noun: str
) -> None:
    """Raise UserError for the first array in which checkpoint and model differ."""
    for name in sorted(expected.keys() - saved.keys()):
        raise UserError(f"checkpoint {path}: {noun} {name} of this run's config is missing in it")
    for name in sorted(saved.keys() - expected.keys()):
        raise UserError(f"checkpoint {path}: it holds a {noun} {name} that this run does not have")
    for name in sorted(expected):
        there, here = saved[name], expected[name]
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
    """The arrays of a tree by Orbax's names, such as 'layers/attention/query'."""
    flat = ocp.tree.to_flat_dict(ocp.tree.serialize_tree(tree, keep_empty_nodes=True))
    return {"/".join(map(str, k)): leaf for k, leaf in flat.items() if hasattr(leaf, "shape")}


def _on_every_process(success: bool) -> bool:
    """Whether all processes succeeded; a file unreadable on one host is unusable on all."""
    if jax.process_count() == 1:
        return success
    return bool(np.all(multihost_utils.process_allgather(np.array(success))))
