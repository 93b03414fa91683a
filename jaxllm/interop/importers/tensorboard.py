"""Import TensorBoard event files, ours and those of other trainers.

    tensorboard:run/tensorboard
    tensorboard:logs?loss=train_loss&tokens_per_step=524288&tasks=eval/

In our own files, `train/…` are training metrics, `capability/<domain>/<task>` the records of tasks,
`evaluation/<task>/<metric>` their other metrics. In others every scalar is a training metric named
by its tag; `NAME=TAG` maps a tag to a name that the analyses use (loss, grad_norm, learning_rate,
tokens), and tags below `tasks` are records of tasks. Event files have no standard errors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import pandas as pd
from etils import epath

from jaxllm.errors import UserError
from jaxllm.interop.importers import known_tasks
from jaxllm.interop.importers.table import (
    COMMON,
    Row,
    Settings,
    family_of,
    size_in_name,
    task_columns,
    to_frame,
)
from jaxllm.run.records import Results

_COLUMNS = ("loss", "grad_norm", "learning_rate", "tokens", "flops", "param_norm")
# Last component of a tag -> our metric.
_METRICS = {**known_tasks.METRICS, **{name: name for name in known_tasks.PRIMARY}}


def read(path: epath.Path, settings: Settings) -> Results:
    """Read the scalars of all event files at or below `path`, as one run.

    Raises:
      UserError: there are no scalars, or a setting names a missing tag.
    """
    settings.check((*COMMON, *_COLUMNS, "tasks"))
    scalars, problems = _scalars(path)
    if not scalars:
        raise UserError(f"{settings.where}: no scalars in event files are there")
    for name in _COLUMNS:
        tag = settings.text(name)
        if tag and tag not in scalars:
            raise UserError(
                f"{settings.where}: no tag {tag}; it has {', '.join(list(scalars)[:8])}"
            )
        if tag:
            scalars[f"train/{name}"] = scalars.pop(tag)
    run = settings.text("run", path.parent.name if path.name == "tensorboard" else path.name)
    params = settings.number("params", size_in_name(run))
    per_step = settings.number("tokens_per_step")
    logged, rows = {}, []
    domains = {p[2]: p[1] for p in (tag.split("/", 2) for tag in scalars) if p[0] == "capability"}
    for tag, series in scalars.items():
        if task := _task(tag, settings.text("tasks"), domains):
            rows += [task | {"step": step, "value": value} for step, value in series.items()]
        else:
            logged[tag.removeprefix("train/")] = series
    metrics = pd.DataFrame(logged).rename_axis("step").reset_index()
    if math.isfinite(per_step) or "tokens" not in metrics:
        metrics["tokens"] = metrics["step"] * per_step
    if "flops" not in metrics:
        metrics["flops"] = 6.0 * params * metrics["tokens"]
    if metrics["tokens"].isna().all():
        problems.append(f"{run}: tokens are not known; say ?tokens_per_step=NUMBER")
    per_token = float((metrics["flops"] / metrics["tokens"]).median())
    clock = metrics.dropna(subset="tokens").set_index("step")["tokens"]
    for row in rows:
        # A checkpoint is scored at a logged step or slightly after it.
        tokens = row["step"] * per_step
        if math.isnan(tokens) and len(known := clock[clock.index <= row["step"]]):
            tokens = known.iloc[-1] * (row["step"] / known.index[-1] if known.index[-1] else 1.0)
        row |= settings.checkpoint(run, family_of(run), params, row["step"], tokens)
        row["flops"] = per_token * tokens
    records = to_frame(rows, problems)
    return Results(settings.where, records, metrics.assign(run=run), tuple(problems))


def _task(tag: str, prefix: str, domains: Mapping[str, str]) -> Row | None:
    """The task columns of a tag; None for a training metric."""
    parts = tag.split("/")
    if parts[0] == "capability" and len(parts) > 2:
        task = "/".join(parts[2:])
        known = known_tasks.lookup(task)
        # Our tags of primary metrics do not name the metric.
        metric = "accuracy" if math.isfinite(known.chance) else "score"
        return task_columns(task, 0, metric) | {"domain": parts[1], "primary": True}
    if parts[0] == "evaluation" and len(parts) > 2:
        task = "/".join(parts[1:-1])
        row = task_columns(task, 0, parts[-1])
        return row | {"domain": domains.get(task, row["domain"])}
    if not prefix or not tag.startswith(prefix):
        return None
    inner = tag.removeprefix(prefix).strip("/").split("/")
    said = _METRICS.get(inner[-1]) if len(inner) > 1 else None
    task = "/".join(inner[:-1] if said else inner)
    return task_columns(task, 0, said or "accuracy") | {"primary": said in (None, "accuracy")}


def _scalars(path: epath.Path) -> tuple[dict[str, pd.Series], list[str]]:
    """Every scalar tag as a series over steps; of several values at a step the last one wins.

    A session that starts at a step discards values logged from that step on, as in TensorBoard.
    """
    problems: list[str] = []
    found: dict[str, dict[int, float]] = {}
    for file in _files(path):
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
            if value.HasField("simple_value"):
                number = value.simple_value
            elif value.tag in typed and value.HasField("tensor"):
                number = float(tensor_util.make_ndarray(value.tensor))
            else:
                continue
            found.setdefault(folder + value.tag, {})[event.step] = number


def _files(path: epath.Path) -> list[epath.Path]:
    if not path.is_dir():
        return [path]
    entries = sorted(path.iterdir(), key=str)
    own = [entry for entry in entries if "tfevents" in entry.name and not entry.is_dir()]
    return own + [file for entry in entries if entry.is_dir() for file in _files(entry)]
