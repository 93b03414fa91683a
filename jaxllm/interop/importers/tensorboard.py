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

    Raises:
      UserError: there are no scalars, or a setting names a missing tag.
    """
    settings.check((*COMMON, *_COLUMNS, "tasks"))
    scalars, problems = _scalars(path)
    if not scalars:
        raise UserError(f"{settings.where}: it has no event files with scalars")
    for name in _COLUMNS:
        tag = settings.values.get(name)
        if tag and tag not in scalars:
            raise UserError(
                f"{settings.where}: no tag {tag}; it has {', '.join(list(scalars)[:8])}"
            )
        if tag:
            scalars[f"train/{name}"] = scalars.pop(tag)
    run = settings.values.get("run", path.parent.name if path.name == "tensorboard" else path.name)
    logged: dict[str, pd.Series] = {}
    rows: list[Row] = []
    domains = {p[2]: p[1] for p in (tag.split("/", 2) for tag in scalars) if p[0] == "capability"}
    for tag, series in scalars.items():
        if task := _task(tag, settings.values.get("tasks", ""), domains):
            rows += [task | {"run": run, "step": step, "value": v} for step, v in series.items()]
        else:
            logged[tag.removeprefix("train/")] = series
    metrics = pd.DataFrame(logged).rename_axis("step").reset_index()
    per_step = settings.number("tokens_per_step")
    if math.isfinite(per_step) or "tokens" not in metrics:
        metrics["tokens"] = metrics["step"] * per_step
    if "flops" not in metrics:
        params = settings.number("params", size_in_name(run))
        metrics["flops"] = 6.0 * params * metrics["tokens"]
    if metrics["tokens"].isna().all():
        problems.append(NOT_KNOWN["tokens"].format(run))
    per_token = float((metrics["flops"] / metrics["tokens"]).median())
    clock = metrics.dropna(subset="tokens").set_index("step")["tokens"]
    for row in rows:
        # A checkpoint is scored at a logged step or slightly after it.
        row["tokens"] = row["step"] * per_step
        known = clock[clock.index <= row["step"]]
        if math.isnan(per_step) and len(known):
            last = known.index[-1]
            row["tokens"] = known.iloc[-1] * (row["step"] / last if last else 1.0)
        row["flops"] = per_token * row["tokens"]
    return to_results(settings, rows, problems, metrics.assign(run=run))


def _task(tag: str, prefix: str, domains: Mapping[str, str]) -> Row | None:
    """The columns of a task and metric that a tag states; None for a training metric."""
    kind, *names = tag.split("/")
    if kind == "capability" and len(names) > 1:
        task = "/".join(names[1:])
        # Our tags of primary metrics do not name the metric.
        metric = "accuracy" if math.isfinite(known_tasks.lookup(task).chance) else "score"
        return {"task": task, "metric": metric, "domain": names[0], "primary": True}
    if kind == "evaluation" and len(names) > 1:
        task = "/".join(names[:-1])
        domain = domains.get(task, known_tasks.lookup(task).domain)
        return {"task": task, "metric": names[-1], "domain": domain, "primary": False}
    if not prefix or not tag.startswith(prefix):
        return None
    *names, last = tag.removeprefix(prefix).strip("/").split("/")
    if names and last in _METRICS:
        return {"task": "/".join(names), "metric": _METRICS[last]}
    return {"task": "/".join([*names, last]), "metric": "accuracy"}


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
            if value.HasField("simple_value"):
                number = value.simple_value
            elif value.tag in typed and value.HasField("tensor"):
                number = float(tensor_util.make_ndarray(value.tensor))
            else:
                continue
            found.setdefault(folder + value.tag, {})[event.step] = number
