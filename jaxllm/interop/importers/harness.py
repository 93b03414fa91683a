"""Import result files of lm-evaluation-harness, in the formats of versions 0.3 and 0.4.

0.3: `{"results": {task: {"acc": …, "acc_stderr": …}}, "versions": …, "config": {"num_fewshot"}}`.
0.4: `{"results": {task: {"acc,none": …}}, "n-shot": {task: …}, "n-samples": {task: {"effective"}},
"configs": {task: …}, "config": {"model_args", "model_num_parameters"}}`. The metric names identify
the format: those of 0.4 include the filter after a comma.

Neither has the step or tokens of the checkpoint: they come from the revision (`revision=step3000`,
OLMo's `step1000-tokens4B`) or from the settings.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from jaxllm.errors import UserError
from jaxllm.interop.importers import known_tasks
from jaxllm.interop.importers.table import (
    COMMON,
    UNITS,
    Row,
    Settings,
    files_below,
    first,
    size_in_name,
    to_results,
)
from jaxllm.io import gunzip
from jaxllm.run.records import Results

_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter)[-_=]?(\d+)", re.IGNORECASE)
_TOKENS = re.compile(r"tokens?[-_=]?(\d+(?:\.\d+)?)([MBT])", re.IGNORECASE)
_NO_METRICS = ("alias", "name", "samples", "sample_len", "sample_count")

Json = dict[str, Any]
# A result, its file and the settings -> the columns of its checkpoint; None for another model.
Describe = Callable[[Json, str, Settings], Row | None]


def read(path: epath.Path, settings: Settings) -> Results:
    """Read a result file, a directory of them, or a JSON-lines file with one result per line.

    Settings: the common ones; `step` and `shots` override the files. UserError if there are no
    results.
    """
    settings.check((*COMMON, "step", "shots"))
    return read_files(path, settings, _checkpoint, "lm-evaluation-harness")


def read_files(path: epath.Path, settings: Settings, describe: Describe, source: str) -> Results:
    """Harness results with the columns that `describe` gives each file; UserError if none."""
    problems: list[str] = []
    rows: list[Row] = []
    unknown: list[str] = []
    for where, result in _results(path, problems):
        checkpoint = describe(result, where, settings)
        if checkpoint is None:
            unknown.append(where)
            continue
        if problem := checkpoint.pop("problem", ""):
            problems.append(problem)
        rows += [row | checkpoint for row in _task_rows(result, where, problems)]
    if unknown:
        problems.append(
            f"{first(unknown)}: neither path nor model_args name a {source} model: left out"
        )
    if not rows:
        raise UserError(f"{settings.where}: no results of {source} are in it")
    return to_results(settings, rows, problems)


def _results(path: epath.Path, problems: list[str]) -> Iterator[tuple[str, Json]]:
    """Yield every harness result below `path` with its file, in the order of file names.

    Other JSON files are skipped; unreadable ones are added to `problems`.
    """
    for file in files_below(path, _is_result):
        try:
            text = gunzip(file.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            problems.append(f"{file}: unreadable ({error})")
            continue
        lines = ".jsonl" in file.name
        for number, line in enumerate(text.splitlines() if lines else [text], start=1):
            if not line.strip():
                continue
            where = f"{file}:{number}" if lines else str(file)
            try:
                result = json.loads(line)
            except (ValueError, RecursionError):
                problems.append(f"{where}: not readable as JSON")
                continue
            if isinstance(result, dict) and isinstance(result.get("results"), dict):
                yield str(result.get("path", where)), result


def _is_result(name: str) -> bool:
    suffixes = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
    return name.endswith(suffixes) and not name.startswith(("samples_", "."))


def _task_rows(result: Json, where: str, problems: list[str]) -> Iterator[Row]:
    """The rows of one result, without the columns of its checkpoint."""
    for task, metrics in result["results"].items():
        if not isinstance(metrics, dict):
            continue
        samples = ((result.get("n-samples") or {}).get(task) or {}).get("effective")
        common = {
            "task": task, "shots": _shots(result, task),
            "n": metrics.get("sample_len", math.nan) if samples is None else samples,
            "task_version": str((result.get("versions") or {}).get(task, 1)),
        }  # fmt: skip
        for key, value in metrics.items():
            name, _, variant = key.partition(",")
            if name.endswith("_stderr") or name in _NO_METRICS:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                problems.append(f"{where}: {task}: {key} is no number ({value!r})")
                continue
            stderr = metrics.get(f"{name}_stderr" + (f",{variant}" if variant else ""))
            metric = known_tasks.METRICS.get(name, name)
            if variant not in ("", "none"):
                metric += "_" + variant.replace("-", "_")
            stderr = stderr if isinstance(stderr, int | float) else math.nan
            yield common | {"metric": metric, "value": value, "stderr": stderr}


def _shots(result: Json, task: str) -> int:
    """Number of few-shot examples of a task; that of its subtasks for a group."""
    by_task = result.get("n-shot") or {}
    subtasks = (result.get("group_subtasks") or {}).get(task) or ()
    for name in (task, *subtasks):
        if isinstance(by_task.get(name), int):
            return by_task[name]
    shots = (result.get("config") or {}).get("num_fewshot")
    return shots if isinstance(shots, int) else 0


def _checkpoint(result: Json, where: str, settings: Settings) -> Row:
    config = result.get("config") or {}
    arguments = config.get("model_args") or ""
    if isinstance(arguments, dict):
        arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
    arguments = str(arguments)
    name = str(result.get("model_name") or "")
    text = " ".join([arguments.replace("/", " / "), name, where])
    match = _STEP.search(text)
    step = settings.number("step", float(match[1]) if match else math.nan)
    tokens = settings.number("tokens_per_step") * step
    if match := _TOKENS.search(text):
        tokens = float(match[1]) * UNITS[match[2].lower()]
    # `pretrained=org/NAME`, `model_name`, or the file name
    match = re.search(r"(?:pretrained|model|path)=([^,]+)", arguments)
    model = re.split(r"[/\\]", (match[1] if match else name or where).rstrip("/"))[-1]
    model = re.sub(r"\.jsonl?(\.gz)?(:\d+)?$", "", model)
    model = re.sub(r"[-_]?(?:step|checkpoint|ckpt|iter)[-_=]?\d+.*$", "", model) or "model"
    params = float(config.get("model_num_parameters") or size_in_name(model))
    shots = {"shots": int(settings.number("shots"))} if "shots" in settings.values else {}
    return {"run": model, "params": params, "step": step, "tokens": tokens, **shots}
