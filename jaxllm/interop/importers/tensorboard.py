"""Import TensorBoard event files of other trainers.

    tensorboard:logs?loss=train_loss&tokens_per_step=524288&tasks=eval/

Every scalar is a training metric named by its tag; `NAME=TAG` maps a tag to a name that the
analyses use (loss, grad_norm, learning_rate, tokens), and tags below `tasks` are records of tasks.
Event files have no standard errors.
"""

from __future__ import annotations

import os

import pandas as pd
from etils import epath

from jaxllm.errors import UserError
from jaxllm.interop.importers import known_tasks
from jaxllm.interop.importers.table import (
    COMMON,
    NOT_KNOWN,
    Row,
    Settings,
    files_below,
    size_in_name,
    to_results,
)
from jaxllm.run.records import Results

_COLUMNS = ("loss", "grad_norm", "learning_rate", "tokens", "flops", "param_norm")
# Last component of a tag -> our metric.
_METRICS = {**known_tasks.METRICS, **{name: name for name in known_tasks.PRIMARY}}


def read(path: epath.Path, settings: Settings) -> Results:
    """Read the scalars of all event files at or below `path`, as one run.

    Tokens of records are interpolated between logged steps. UserError if there are no scalars, or a
    setting names a missing tag.
    """
    settings.check((*COMMON, *_COLUMNS, "tasks"))
    scalars, problems = _scalars(path)
    if not scalars:
        raise UserError(f"{settings.where}: it has no event files with scalars")
    for name in _COLUMNS:
        tag = settings.values.get(name, name)
        if tag != name and tag not in scalars:
            raise UserError(
                f"{settings.where}: no tag {tag}; it has {', '.join(list(scalars)[:8])}"
            )
        if tag != name:
            scalars[name] = scalars.pop(tag)
    run = settings.values.get("run", path.name)
    prefix = settings.values.get("tasks")
    of_tasks = [tag for tag in scalars if prefix and tag.startswith(prefix)]
    table = pd.DataFrame(scalars).rename_axis("step")
    logged = table.drop(columns=of_tasks).dropna(how="all").index
    if "tokens" not in table or "tokens_per_step" in settings.values:
        table["tokens"] = table.index * settings.number("tokens_per_step")
    if "flops" not in table:
        params = settings.number("params", size_in_name(run))
        table["flops"] = 6.0 * params * table["tokens"]
    if table["tokens"].isna().all():
        problems.append(NOT_KNOWN["tokens"].format(run))
    if 0 in table.index:  # an untrained model
        table.loc[0, ["tokens", "flops"]] = table.loc[0, ["tokens", "flops"]].fillna(0.0)
    clock = table[["tokens", "flops"]].interpolate("index", limit_direction="both")
    rows = [
        _task(tag.removeprefix(str(prefix)).strip("/"))
        | {"run": run, "step": step, "value": value, **clock.loc[step]}
        for tag in of_tasks
        for step, value in scalars[tag].items()
    ]
    metrics = table.drop(columns=of_tasks).loc[logged].reset_index()
    return to_results(settings, rows, problems, metrics.assign(run=run))


def _task(tag: str) -> Row:
    """The task and metric that a tag states."""
    *names, last = tag.split("/")
    if names and last in _METRICS:
        return {"task": "/".join(names), "metric": _METRICS[last]}
    return {"task": tag, "metric": "accuracy"}


def _scalars(path: epath.Path) -> tuple[dict[str, pd.Series], list[str]]:
    """Every scalar tag as a series over steps; of several values at a step the last one wins.

    A session that starts at a step discards values logged from that step on, as in TensorBoard.
    """
    problems: list[str] = []
    found: dict[str, dict[int, float]] = {}
    for file in files_below(path, lambda name: "tfevents" in name):
        parent = os.path.relpath(str(file.parent), str(path)) if path.is_dir() else "."
        folder = "" if parent == "." else f"{parent}/"
        problems += _add_scalars(file, folder, found)
    result = {tag: pd.Series(at, dtype="float64").sort_index() for tag, at in found.items() if at}
    for tag, series in result.items():
        if series.isna().any():
            problems.append(f"{tag} is not a finite number at {int(series.isna().sum())} steps")
    return result, problems


def _add_scalars(
    file: epath.Path, folder: str, found: dict[str, dict[int, float]]
) -> tuple[str, ...]:
    """Add the scalars of one event file; return problems such as truncation.

    Records are read one by one, because TensorBoard's own accumulator imports TensorFlow (seconds,
    and log lines) and silently skips damage.
    """
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.tensorflow_stub import errors
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
    from tensorboard.util import tensor_util

    reader = PyRecordReader_New(str(file))
    typed: set[str] = set()  # scalar tags stored as tensors: only their first record has the type
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            return ()
        except errors.DataLossError as error:
            return (f"{file}: damaged from here on ({error})",)
        event = event_pb2.Event.FromString(reader.record())
        if event.session_log.status == event_pb2.SessionLog.START:
            for tag, points in found.items():
                if tag.startswith(folder):
                    found[tag] = {step: v for step, v in points.items() if step < event.step}
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                typed.add(value.tag)
            has_tensor = value.HasField("tensor")
            if value.HasField("simple_value"):
                number = value.simple_value
            elif value.tag in typed and has_tensor and not value.tensor.tensor_shape.dim:
                number = float(tensor_util.make_ndarray(value.tensor))
            else:
                continue
            found.setdefault(folder + value.tag, {})[event.step] = number
