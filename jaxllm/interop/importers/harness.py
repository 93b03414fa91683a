"""Import result files of lm-evaluation-harness, in the formats of versions 0.3 and 0.4.

0.3: `{"results": {task: {"acc": …, "acc_stderr": …}}, "versions": …, "config": {"num_fewshot"}}`.
0.4: `{"results": {task: {"acc,none": …}}, "n-shot": {task: …}, "n-samples": {task: {"effective"}},
"configs": {task: …}, "config": {"model_args", "model_num_parameters"}}`. The metric names identify
the format: those of 0.4 include the filter after a comma.

Neither has the step or tokens of the checkpoint: they come from the revision (`revision=step3000`,
OLMo's `step1000-tokens4B`) or from the settings.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from jaxllm.errors import UserError
from jaxllm.interop.importers import known_tasks
from jaxllm.interop.importers.table import (
    COMMON,
    UNITS,
    Row,
    Settings,
    family_of,
    from_rows,
    size_in_name,
    task_columns,
)
from jaxllm.run.records import Results

_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter)[-_=]?(\d+)", re.IGNORECASE)
_TOKENS = re.compile(r"tokens?[-_=]?(\d+(?:\.\d+)?)([MBT])", re.IGNORECASE)
_NO_METRICS = ("alias", "name", "samples", "sample_len", "sample_count")


def read(path: epath.Path, settings: Settings) -> Results:
    """Read a result file, a directory of them, or a JSON-lines file with one result per line.

    Settings: the common ones; `step` and `shots` override the files.

    Raises:
      UserError: there are no results.
    """
    settings.check((*COMMON, "step", "shots"))
    problems: list[str] = []
    rows: list[Row] = []
    for where, result in results(path, problems):
        rows += _rows(result, where, settings, problems)
    if not rows:
        raise UserError(f"{settings.where}: no results of lm-evaluation-harness are in it")
    return from_rows(settings, rows, problems)


def results(path: epath.Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every harness result below `path` with its file, in the order of file names.

    Other JSON files are skipped; unreadable ones are added to `problems`.
    """
    for file in _files(path):
        try:
            data = file.read_bytes()
            text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        except (OSError, EOFError) as error:
            problems.append(f"{file}: unreadable ({error})")
            continue
        lines = ".jsonl" in file.name
        for number, line in enumerate(text.splitlines() if lines else [text], start=1):
            if not line.strip():
                continue
            where = f"{file}:{number}" if lines else str(file)
            try:
                result = json.loads(line)
            except ValueError:
                problems.append(f"{where}: not readable as JSON")
                continue
            if isinstance(result, dict) and isinstance(result.get("results"), dict):
                yield str(result.get("path", where)), result


def _files(path: epath.Path) -> list[epath.Path]:
    if not path.is_dir():
        return [path]
    found: list[epath.Path] = []
    for entry in sorted(path.iterdir(), key=str):
        if entry.is_dir():
            found += _files(entry)
        elif entry.name.endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz")) and not (
            entry.name.startswith(("samples_", "."))
        ):
            found.append(entry)
    return found


def task_rows(result: dict[str, Any], shots: int | None, problems: list[str]) -> Iterator[Row]:
    """The records of one result, without the columns of its run.

    Args:
      result: a harness result of either format.
      shots: number of shots; None is that of the result.
      problems: list to which a line is added for every value that is not a number.
    """
    for task, metrics in result["results"].items():
        if not isinstance(metrics, dict):
            continue
        of_task = _shots(result, task) if shots is None else shots
        samples = ((result.get("n-samples") or {}).get(task) or {}).get("effective")
        samples = metrics.get("sample_len", math.nan) if samples is None else samples
        version = (result.get("versions") or {}).get(task, 1)
        measured: dict[str, Row] = {}
        for key, value in metrics.items():
            name, _, variant = key.partition(",")
            if name.endswith("_stderr") or name in _NO_METRICS:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                problems.append(f"{task}: {key} is no number ({value!r})")
                continue
            stderr = metrics.get(f"{name}_stderr" + (f",{variant}" if variant else ""))
            metric = known_tasks.METRICS.get(name, name)
            if variant not in ("", "none"):
                metric += "_" + variant.replace("-", "_")
            measured[metric] = task_columns(task, of_task, metric) | {
                "value": value, "n": samples, "task_version": str(version),
                "stderr": stderr if isinstance(stderr, int | float) else math.nan,
            }  # fmt: skip
        if measured:
            measured[known_tasks.primary_metric(list(measured))]["primary"] = True
        yield from measured.values()


def _shots(result: dict[str, Any], task: str) -> int:
    """Number of few-shot examples of a task; that of its subtasks for a group."""
    by_task = result.get("n-shot") or {}
    parts = (result.get("group_subtasks") or {}).get(task) or [task]
    for name in (task, *parts):
        if isinstance(by_task.get(name), int):
            return by_task[name]
    given = (result.get("config") or {}).get("num_fewshot")
    return given if isinstance(given, int) else 0


def _rows(result: dict[str, Any], where: str, settings: Settings, problems: list[str]) -> list[Row]:
    config = result.get("config") or {}
    arguments = config.get("model_args") or ""
    said = arguments if isinstance(arguments, str) else json.dumps(arguments)
    said = " ".join([said.replace("/", " / "), str(result.get("model_name", "")), where])
    model = _model(arguments, result, where)
    run = settings.text("run", model)
    match = _STEP.search(said)
    step = settings.number("step", float(match[1]) if match else math.nan)
    params = float(config.get("model_num_parameters") or size_in_name(model))
    tokens = settings.number("tokens_per_step") * step
    if match := _TOKENS.search(said):
        tokens = float(match[1]) * UNITS[match[2].lower()]
    common = settings.checkpoint(
        run, family_of(run), params, 0 if math.isnan(step) else step, tokens
    )
    for name, number, setting in (
        ("the step", step, "step"), ("tokens seen", tokens, "tokens_per_step"),
        ("the number of parameters", common["params"], "params"),
    ):  # fmt: skip
        line = f"{run}: {name} is not known; say it as ?{setting}=NUMBER"
        if math.isnan(number) and line not in problems:
            problems.append(line)
    shots = settings.number("shots")
    found: list[str] = []
    rows = task_rows(result, None if math.isnan(shots) else int(shots), found)
    filled = [common | row for row in rows]
    problems += [f"{where}: {problem}" for problem in found]
    return filled


def _model(arguments: Any, result: dict[str, Any], where: str) -> str:
    """The model's name: `pretrained=org/NAME`, `model_name`, or the file name."""
    if isinstance(arguments, dict):
        arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
    match = re.search(r"(?:pretrained|model|path)=([^,]+)", arguments)
    name = match[1] if match else str(result.get("model_name") or "") or where
    name = re.split(r"[/\\]", name.rstrip("/"))[-1]
    name = re.sub(r"\.jsonl?(\.gz)?(:\d+)?$", "", name)
    return re.sub(r"[-_]?(?:step|checkpoint|ckpt|iter)[-_=]?\d+.*$", "", name) or "model"
