"""Averages of a run's checkpoints, as a run directory of their own that every command reads.

An average of checkpoints on the plateau of the learning rate stands in for a decay: the mean of the
last k + 1 for a linear one (WSM, arXiv 2507.17634, §3; PMA, arXiv 2505.12082), other weights for
others. It has parameters alone, and the step and tokens of its newest member.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError
from jaxllm.io import new_directory
from jaxllm.run.checksums import of_arrays, with_checksums
from jaxllm.run.layout import MODEL, TOKENIZERS, TRAINING
from jaxllm.run.manifest import AVERAGE, ManifestEntry
from jaxllm.run.restore import SavedArrays, saved_json
from jaxllm.run.run import Run

Weighting = Literal["uniform", "ema", "sqrt"]
EMA = "ema"  # the field of the optimizer state that `TrainConfig.ema_decay` adds
_TOKENIZER_FILES = (*TOKENIZERS, "tokenizer_config.json", "config.json")


def weights(kind: Weighting, count: int, decay: float = 0.5) -> np.ndarray:
    """float64 [count], the relative weight of each member, oldest first.

    'uniform' emulates a linear decay over the members, 'sqrt' one by 1 - sqrt (WSM, eq. 5: the
    decay's multipliers w_1, …, w_k give c_k = w_k, c_j = w_j - w_{j+1}, c_0 = 1 - w_1); 'ema' is an
    exponential average with `decay` from member to member.
    """
    if kind == "ema":
        return decay ** np.arange(count - 1, -1, -1, dtype=np.float64)
    if kind == "sqrt":
        multipliers = 1 - np.sqrt(np.arange(count + 1) / count)  # w_0 = 1, …, w_{k+1} = 0
        return multipliers[:-1] - multipliers[1:]
    return np.ones(count)


def windows(entries: Sequence[ManifestEntry], last: int) -> list[list[ManifestEntry]]:
    """Each `last` consecutive checkpoints; UserError if there are fewer."""
    if not 1 < last <= len(entries):
        raise UserError(f"an average of the last {last}: the run has {len(entries)} checkpoints")
    return [list(entries[end - last : end]) for end in range(last, len(entries) + 1)]


def average(
    run: Run,
    groups: Sequence[Sequence[ManifestEntry]],
    kind: Weighting,
    target: str,
) -> None:
    """Write the new run directory `target` with an average of each group of checkpoints.

    Sums are float64, an array at a time; the averages have the dtype of the parameters. UserError
    if `target` exists, a checkpoint is damaged, or checkpoints are of different models, as those of
    two stages may be. A group is ordered by step.
    """
    for group in groups:
        *models, last = [saved_json(run.layout, one.step).get("model", {}) for one in group]
        for entry, model in zip(group, models, strict=False):
            for name in (name for name in model if model[name] != last.get(name)):
                raise UserError(
                    f"checkpoints {entry.step} and {group[-1].step} of {run.path} differ in "
                    f"{name}, {model[name]!r} and {last.get(name)!r}: average those of one stage, "
                    "with --steps"
                )

    def arrays(group: Sequence[ManifestEntry]) -> Iterator[tuple[str, np.ndarray]]:
        saved = [SavedArrays(run.layout.checkpoint(entry.step) / MODEL) for entry in group]
        for other in saved[1:]:
            if other.shapes != saved[0].shapes:
                raise UserError(f"{other.path} is of another model than {saved[0].path}")
        for name in saved[0].shapes:
            yield name, mean([one.read(name) for one in saved], weights(kind, len(group)))

    _write(run, groups, arrays, target)


def mean(members: Sequence[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """The weighted mean of arrays in float64, rounded to their dtype."""
    total = np.zeros(members[0].shape, np.float64)
    for share, member in zip(shares, members, strict=True):
        total += share * member.astype(np.float64)
    return (total / shares.sum()).astype(members[0].dtype)


def extract_ema(run: Run, entries: Sequence[ManifestEntry], target: str) -> None:
    """Write the run directory `target` of the moving averages in checkpoints; UserError if none."""

    def arrays(group: Sequence[ManifestEntry]) -> Iterator[tuple[str, np.ndarray]]:
        (entry,) = group
        saved = SavedArrays(run.layout.checkpoint(entry.step) / TRAINING)
        held = [name for name in saved.shapes if f"/{EMA}/" in name]
        if not held:
            raise UserError(
                f"{saved.path} holds no moving average: TrainConfig.ema_decay makes a run keep one"
            )
        for name in held:
            yield name.partition(f"/{EMA}/")[2], saved.read(name).astype(jnp.dtype(entry.dtype))

    _write(run, [[entry] for entry in entries], arrays, target)


def _write(
    run: Run,
    groups: Sequence[Sequence[ManifestEntry]],
    arrays: Callable[[Sequence[ManifestEntry]], Iterator[tuple[str, np.ndarray]]],
    target: str,
) -> None:
    """Write a run directory with a checkpoint of each group, at its newest member's step."""
    import orbax.checkpoint as ocp
    from flax.traverse_util import unflatten_dict

    Run(target).layout.check_name()
    with new_directory(target) as partial:
        written = Run(partial)
        written.write_config(run.config())
        for file in _TOKENIZER_FILES:
            if (run.path / file).exists():
                (written.path / file).write_bytes((run.path / file).read_bytes())
        for group in groups:
            newest = group[-1]
            entry = dataclasses.replace(newest, kind=AVERAGE, parent=None, loss=None)
            written.manifest_lines.append(dataclasses.asdict(entry))
            params = unflatten_dict(dict(arrays(group)), sep="/")
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler(MODEL)) as checkpointer:
                saved = ocp.args.Composite(**{MODEL: ocp.args.StandardSave(params)})
                sums = with_checksums({}, of_arrays({MODEL: params}))
                path = written.layout.checkpoint(entry.step)
                checkpointer.save(path, saved, custom_metadata=sums)
            steps = ", ".join(str(member.step) for member in group)
            print(f"step {entry.step} from {steps}")
