"""Domains, chance levels and sizes of well-known tasks, which published results lack.

lm-evaluation-harness files have none. A task that is not in the table gets the domain "other" and
no chance level, and the importer reports it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

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


_FOUR, _NONE = 0.25, math.nan

# A key applies to the task of that name and to its subtasks: "mmlu" also to mmlu_anatomy.
_TABLE: dict[str, dict[str, float]] = {
    "examination": {"mmlu": _FOUR, "cmmlu": _FOUR, "ceval-valid": _FOUR, "ceval": _FOUR,
                    "agieval": _NONE, "mmlu_pro": 0.1},
    "knowledge": {"sciq": _FOUR, "triviaqa": 0.0, "nq_open": 0.0, "webqs": 0.0, "headqa": _FOUR,
                  "pubmedqa": 1 / 3, "truthfulqa": _NONE},
    "reading": {"lambada": 0.0, "boolq": 0.5, "race": _FOUR, "squad": 0.0, "drop": 0.0,
                "coqa": 0.0, "record": _NONE, "multirc": 0.5},
    "commonsense": {"arc_easy": _FOUR, "arc_challenge": _FOUR, "openbookqa": _FOUR, "piqa": 0.5,
                    "hellaswag": _FOUR, "winogrande": 0.5, "wsc": 0.5, "wsc273": 0.5, "copa": 0.5,
                    "siqa": 1 / 3, "social_iqa": 1 / 3, "commonsense_qa": 0.2,
                    "swag": _FOUR, "storycloze": 0.5, "prost": _FOUR, "mc_taco": 0.5},
    "reasoning": {"logiqa": _FOUR, "logiqa2": _FOUR, "bbh": _NONE, "bigbench": _NONE,
                  "anli": 1 / 3, "cb": 1 / 3, "rte": 0.5, "wnli": 0.5, "mnli": 1 / 3, "qnli": 0.5},
    "math": {"gsm8k": 0.0, "mathqa": 0.2, "arithmetic": 0.0, "minerva_math": 0.0,
             "hendrycks_math": 0.0, "asdiv": 0.0, "svamp": 0.0, "mgsm": 0.0},
    "code": {"humaneval": 0.0, "mbpp": 0.0},
    "language": {"wikitext": _NONE, "pile": _NONE, "c4": _NONE, "paloma": _NONE, "blimp": 0.5,
                 "wic": 0.5, "cola": 0.5, "mrpc": 0.5, "qqp": 0.5, "sst": 0.5, "sst2": 0.5},
    "bias": {"crows_pairs": _NONE, "toxigen": 0.5, "winogender": 0.5},
}  # fmt: skip

# Examples with the most frequent label, of all: the validation splits of GLUE (arXiv 1804.07461)
# and SuperGLUE (1905.00537), the test splits of ANLI and MMLU, the 1,000 labelled ones of PubMedQA.
# MMLU's is the letter D; a single subject's may be more frequent.
_MAJORITY = {
    "boolq": 2033 / 3270, "cb": 28 / 56, "rte": 146 / 277, "wic": 319 / 638, "wsc": 66 / 104,
    "multirc": 0.572, "mrpc": 279 / 408, "qqp": 25545 / 40430, "qnli": 2761 / 5463,
    "sst": 444 / 872, "sst2": 444 / 872, "cola": 721 / 1043, "wnli": 40 / 71, "mnli": 3479 / 9815,
    "anli": 0.335, "pubmedqa": 552 / 1000, "mmlu": 3776 / 14042,
}  # fmt: skip
# Examples of the tasks that only exist in one split, or are scored on the same one by everybody.
_EXAMPLES = {
    "piqa": 1838, "arc_easy": 2376, "arc_challenge": 1172, "hellaswag": 10042, "openbookqa": 500,
    "winogrande": 1267, "boolq": 3270, "copa": 100, "rte": 277, "cb": 56, "wic": 638, "wsc": 104,
    "wsc273": 273, "multirc": 4848, "mrpc": 408, "qqp": 40430, "qnli": 5463, "sst": 872,
    "sst2": 872, "cola": 1043, "wnli": 71, "mnli": 9815, "sciq": 1000, "logiqa": 651,
    "lambada": 5153, "commonsense_qa": 1221, "siqa": 1954, "social_iqa": 1954, "mathqa": 2985,
    "mmlu": 14042, "gsm8k": 1319, "truthfulqa": 817, "humaneval": 164, "nq_open": 3610,
}  # fmt: skip
_TASKS = {
    name: KnownTask(domain, chance, _MAJORITY.get(name, math.nan), _EXAMPLES.get(name, math.nan))
    for domain, tasks in _TABLE.items()
    for name, chance in tasks.items()
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
