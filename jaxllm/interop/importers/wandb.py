"""Import charts exported from Weights & Biases: a folder of CSV files, plain or gzip.

    wandb:exports/?run=Amber&params=6.74e9&tokens_per_step=4587520
    wandb:exports/?tasks=downstream_eval

An exported chart has an axis such as `Step`, and for every run the columns `RUN - KEY` and their
`__MIN` and `__MAX`, which are left out. A key that ends in a metric (`eval/piqa/acc_norm`), names a
known task, or begins with `tasks` (as `RUN - KEY` may), is of a task; every other is a training
metric, such as `train/loss`. A table in long form has the columns `metric` and `value`, one of
`task` and `domain`, and one of `checkpoint` and `step`; `tokens`, `shots` and `run` are optional.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd
from etils import epath

from jaxllm.errors import UserError
from jaxllm.interop.importers import known_tasks
from jaxllm.interop.importers.table import COMMON, Settings, files_below, read_table, to_results
from jaxllm.run.records import Results, split_shots

_NUMBERS = ("step", "tokens", "shots", "value")
_TRAINING = "train/"


def read(path: epath.Path, settings: Settings) -> Results:
    """Read all exports at or below `path`; training metrics become those of the run.

    UserError if there are no exports.
    """
    settings.check((*COMMON, "tasks"))
    problems: list[str] = []
    parts = [
        part
        for file in files_below(path, lambda name: name.endswith((".csv", ".csv.gz")))
        for part in _parts(file, settings, problems)
    ]
    if not parts:
        raise UserError(f"{settings.where}: no exports of Weights & Biases are in it")
    frame = pd.concat(parts, ignore_index=True)
    for name in set(_NUMBERS) & set(frame):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    frame = frame.dropna(subset=["task", "value"])
    default = settings.values.get("run", path.name.split(".")[0])
    frame["run"] = frame.run.fillna(default) if "run" in frame else default
    counted = frame["step"] * settings.number("tokens_per_step")
    frame["tokens"] = frame["tokens"].fillna(counted) if "tokens" in frame else counted
    logged = frame.task.str.startswith(_TRAINING)
    rows = frame[logged].assign(name=frame.task.str.removeprefix(_TRAINING))
    if "run" in settings.values:
        rows["run"] = settings.values["run"]
    metrics = None
    if len(rows):
        metrics = rows.pivot_table("value", ["run", "step"], "name")
        if "tokens" not in metrics:
            metrics["tokens"] = rows.groupby(["run", "step"]).tokens.max()
        metrics = metrics.reset_index()
    scores = frame[~logged].drop(columns="tokens" if frame.tokens.isna().all() else [])
    return to_results(settings, scores, problems, metrics)


def _parts(file: epath.Path, settings: Settings, problems: list[str]) -> Iterator[pd.DataFrame]:
    """Rows of one file: `run, step, tokens, task, metric, value`; see `_task` for the tasks."""
    try:
        table = read_table(file)
        if {"metric", "value"} <= set(table) and {"task", "domain"} & set(table):
            yield _long_form(table, file)
            return
    except UserError as error:
        problems.append(f"{error}: left out")
        return
    axis = str(table.columns[0])
    clock = "tokens" if "token" in axis.lower() else "step"
    columns = [str(c) for c in table if " - " in str(c) and not str(c).endswith(("__MIN", "__MAX"))]
    if not columns or not re.search("step|token|checkpoint", axis, re.IGNORECASE):
        problems.append(f"{file}: no chart over steps or tokens: left out")
        return
    if clock == "tokens":
        table["step"] = table[axis].rank(method="dense")
    for column in columns:
        run, _, key = column.rpartition(" - ")
        task, metric = _task(run, key, settings.values.get("tasks", ""))
        part = {"run": run, clock: table[axis], "task": task, "metric": metric}
        yield pd.DataFrame({"step": table.get("step"), **part, "value": table[column]})


def _long_form(table: pd.DataFrame, file: epath.Path) -> pd.DataFrame:
    steps = next((n for n in ("checkpoint", "step", "Step", "_step") if n in table), None)
    if steps is None:
        raise UserError(f"{file}: a table without a column checkpoint or step")
    frame = table[[n for n in ("run", "tokens", "shots", "metric", "value") if n in table]]
    task = table.get("task")
    if task is None:  # a part of a corpus: pile_perplexity.csv holds pile_arxiv, …
        corpus = re.sub(r"_(perplexity|loss|bits_per_byte)$", "", file.name.split(".")[0])
        task = corpus + "_" + table.domain.str.lower().str.findall(r"\w+").str.join("_")
    return frame.assign(step=table[steps], task=task)


def _task(run: str, key: str, prefix: str) -> tuple[str, str]:
    """Task and metric of a key; a training metric is the task `train/…`."""
    *names, last = key.removeprefix(prefix).strip("/").split("/")
    if names and names != ["train"] and last in (*known_tasks.METRICS, *known_tasks.PRIMARY):
        return _known(names) or "/".join(names), last
    task = _known([*names, last])
    if task or (prefix and any(text.startswith(prefix) for text in (key, f"{run} - {key}"))):
        measured = "perplexity" if "perplexity" in f"{run} {key}".lower() else "accuracy"
        return task or "/".join([*names, last]), measured
    return _TRAINING + key.removeprefix(_TRAINING), ""


def _known(names: list[str]) -> str:
    """The last of the names if it is that of a known task, else an empty text."""
    known = known_tasks.lookup(split_shots(names[-1])[0]).domain != known_tasks.OTHER
    return names[-1] if known else ""
