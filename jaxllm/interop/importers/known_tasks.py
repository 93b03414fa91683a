"""Domains, chance levels and sizes of well-known tasks, which published results lack.

lm-evaluation-harness files have none. A task that is not in the table gets the domain "other" and
no chance level, and the importer reports it.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import re
from fractions import Fraction
from importlib import resources

OTHER = "other"


@dataclasses.dataclass(frozen=True)
class KnownTask:
    """Facts of a benchmark; NaN where they are not known, or vary.

    `chance` is that of its accuracy, `majority` the accuracy of the best constant answer, `n` the
    number of examples in the split that lm-evaluation-harness scores.
    """

    domain: str
    chance: float
    majority: float = math.nan
    n: float = math.nan


# known_tasks.csv: a key applies to the task of that name and to its subtasks: "mmlu" also to
# mmlu_anatomy. `majority` is the examples with the most frequent label, of all: the validation
# splits of GLUE (arXiv 1804.07461) and SuperGLUE (1905.00537), the test splits of ANLI and MMLU,
# the 1,000 labelled ones of PubMedQA. MMLU's is the letter D; a single subject's may be higher.
# `n` is of the tasks that only exist in one split, or are scored on the same one by everybody.
_CSV = resources.files("jaxllm.interop.importers").joinpath("known_tasks.csv").read_text()
_number = lambda text: float(Fraction(text)) if text else math.nan
_TASKS = {
    row["task"]: KnownTask(row["domain"], *map(_number, (row["chance"], row["majority"], row["n"])))
    for row in csv.DictReader(_CSV.splitlines())
}


# Spellings in tables and papers, in lower case.
_ALIASES = {"arc": "arc_challenge", "arc_c": "arc_challenge", "arc_e": "arc_easy",
            "csqa": "commonsense_qa", "naturalquestions": "nq_open",
            "math": "hendrycks_math"}  # fmt: skip


def canonical(task: str) -> str:
    """The usual name of a task: "hendrycksTest-anatomy" -> "mmlu_anatomy"; others stay."""
    if task.startswith("hendrycksTest-"):
        return "mmlu_" + task.removeprefix("hendrycksTest-")
    plain = re.sub(r"[-\s]+", "_", task.strip().lower())
    plain = _ALIASES.get(plain, plain)
    return plain if plain in _TASKS else task


@functools.cache
def lookup(task: str) -> KnownTask:
    """The facts of a task, by its name or that of its benchmark."""
    name = whole = canonical(task)
    while name:
        if name in _TASKS:
            known = _TASKS[name]
            alike = name in (whole, "lambada")  # its variants are the same examples
            return known if alike else dataclasses.replace(known, n=math.nan)
        name = name[: max(name.rfind("_"), name.rfind("-"), 0)]
    return KnownTask(OTHER, math.nan)


# lm-evaluation-harness' metric -> ours. Its acc_norm divides by the option's length in characters.
METRICS = {
    "acc": "accuracy", "acc_norm": "accuracy_per_char", "acc_bytes": "accuracy_per_byte",
    "ppl": "perplexity", "em": "exact_match", "f1": "f1", "mc1": "mc1", "mc2": "mc2",
    "brier_score": "brier",
}  # fmt: skip

# Primary metrics in the order of preference; else the first metric of the file.
PRIMARY = ("accuracy", "exact_match", "bits_per_byte", "f1", "pct_stereotype", "perplexity")


def primary_metric(metrics: list[str]) -> str:
    """The primary metric of a task, among the measured ones."""
    for prefix in PRIMARY:
        for exact in (True, False):
            for metric in metrics:
                if metric == prefix if exact else metric.startswith(prefix + "_"):
                    return metric
    return metrics[0]
