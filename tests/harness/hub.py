"""The benchmarks as lm-evaluation-harness loads them from the hub, made from local files.

`DATASETS` answers `datasets.load_dataset(path, name)` for the tasks that are compared, from the
files under `shared/data/evals` (see its README for their sources).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
Splits = dict[str, Rows]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _bare(query: str) -> str:
    return query.removeprefix("Question: ").removesuffix("\nAnswer:")


def _lettered(row: dict[str, Any], key: str) -> dict[str, Any]:
    if "answerKey" in row:  # in the hub's form already
        return {name: row[name] for name in ("id", key, "choices", "answerKey")}
    letters = list("ABCDE"[: len(row["choices"])])
    return {
        "id": str(row["id"]),
        key: _bare(row["query"]),
        "choices": {"text": row["choices"], "label": letters},
        "answerKey": letters[row["gold"]],
    }


def arc(evals: Path, name: str) -> Splits:
    """allenai/ai2_arc."""
    folder = evals / {"ARC-Easy": "arc_easy", "ARC-Challenge": "arc_challenge"}[name]
    return {
        split: [_lettered(row, "question") for row in rows(folder / f"{split}.jsonl.gz")]
        for split in ("train", "validation", "test")
    }


def openbookqa(evals: Path, name: str) -> Splits:
    """allenai/openbookqa."""
    folder = evals / "openbookqa"
    return {
        split: [_lettered(row, "question_stem") for row in rows(folder / f"{split}.jsonl.gz")]
        for split in ("train", "validation", "test")
    }


def piqa(evals: Path, name: str | None) -> Splits:
    """baber/piqa."""
    keys = ("goal", "sol1", "sol2", "label")
    return {
        split: [{k: row[k] for k in keys} for row in rows(evals / f"piqa/{split}.jsonl.gz")]
        for split in ("train", "validation")
    }


def hellaswag(evals: Path, name: str | None) -> Splits:
    """Rowan/hellaswag. The local text form is preprocessed already, which changes nothing again."""
    text = gzip.decompress((evals / "hellaswag/hellaswag_val_full.txt.gz").read_bytes()).decode()
    lines = text.rstrip("\n").split("\n")
    found = []
    for start in range(0, len(lines), 6):
        context, answer, *endings = lines[start : start + 6]
        activity, _, rest = context.partition(": ")
        found.append(
            {
                "ind": start // 6,
                "activity_label": activity,
                "ctx_a": rest,
                "ctx_b": "",
                "ctx": rest,
                "endings": endings,
                "label": answer,
            }
        )
    return {"train": found[-1000:], "validation": found}


def super_glue(evals: Path, name: str) -> Splits:
    """aps/super_glue: boolq and copa."""
    if name == "copa":
        found = list(rows(evals / "copa/validation.jsonl.gz"))
        return {"train": found, "validation": found}
    boolq = [
        {"question": r["question"], "passage": r["passage"], "idx": i, "label": int(r["answer"])}
        for i, r in enumerate(rows(evals / "boolq/validation.jsonl.gz"))
    ]
    return {"train": boolq[-500:], "validation": boolq}


def winogrande(evals: Path, name: str) -> Splits:
    """allenai/winogrande."""
    keys = ("sentence", "option1", "option2", "answer")
    return {
        split: [{k: row[k] for k in keys} for row in rows(evals / f"winogrande/{split}.jsonl.gz")]
        for split in ("train", "validation")
    }


def mmlu(evals: Path, name: str) -> Splits:
    """cais/mmlu, one subject."""
    return {
        split: [row for row in rows(evals / f"mmlu/{split}.jsonl.gz") if row["subject"] == name]
        for split in ("dev", "validation", "test")
    }


def commonsense_qa(evals: Path, name: str | None) -> Splits:
    """tau/commonsense_qa."""
    found = [
        {k: row[k] for k in ("id", "question", "question_concept", "choices", "answerKey")}
        for row in rows(evals / "commonsense_qa/validation.jsonl.gz")
    ]
    return {"train": found[-200:], "validation": found}


def siqa(evals: Path, name: str | None) -> Splits:
    """lighteval/siqa."""
    found = list(rows(evals / "siqa/validation.jsonl.gz"))
    return {"train": found[-200:], "validation": found}


def lambada(evals: Path, name: str | None) -> Splits:
    """EleutherAI/lambada_openai."""
    return {
        "test": [
            {"text": f"{row['context']} {row['continuation'].strip()}"}
            for row in rows(evals / "lambada/lambada_openai.jsonl.gz")
        ]
    }


def truthfulqa(evals: Path, name: str) -> Splits:
    """truthfulqa/truthful_qa, multiple_choice: correct answers first, as on the hub."""
    text = gzip.decompress((evals / "truthfulqa/TruthfulQA.csv.gz").read_bytes()).decode(
        "utf-8-sig"
    )
    found = []
    for row in csv.DictReader(io.StringIO(text)):
        listed = lambda key, row=row: [a.strip() for a in row[key].split(";") if a.strip()]
        correct, wrong = listed("Correct Answers"), listed("Incorrect Answers")
        best = row["Best Answer"].strip()
        choices = lambda right, wrong=wrong: {
            "choices": [*right, *wrong],
            "labels": [1] * len(right) + [0] * len(wrong),
        }
        found.append(
            {
                "question": row["Question"],
                "mc1_targets": choices([best]),
                "mc2_targets": choices(correct),
            }
        )
    return {"validation": found}


def gsm8k(evals: Path, name: str) -> Splits:
    """openai/gsm8k."""
    keys = ("question", "answer")
    return {
        split: [{k: row[k] for k in keys} for row in rows(evals / f"gsm8k/{split}.jsonl.gz")]
        for split in ("train", "test")
    }


def nq_open(evals: Path, name: str | None) -> Splits:
    """google-research-datasets/nq_open."""
    found = list(rows(evals / "nq_open/validation.jsonl.gz"))
    return {"train": found[-500:], "validation": found}


def triviaqa(evals: Path, name: str) -> Splits:
    """mandarjoshi/trivia_qa, rc.nocontext."""
    found = [
        {
            "question": _bare(row["context"]).removesuffix("?"),
            "answer": {"value": row["answer"], "aliases": row["aliases"]},
        }
        for row in rows(evals / "triviaqa/triviaqa_sm_sub.jsonl.gz")
    ]
    return {"train": found[-500:], "validation": found}


DATASETS: dict[str, Callable[[Path, Any], Splits]] = {
    "allenai/ai2_arc": arc,
    "allenai/openbookqa": openbookqa,
    "allenai/winogrande": winogrande,
    "aps/super_glue": super_glue,
    "baber/piqa": piqa,
    "cais/mmlu": mmlu,
    "EleutherAI/lambada_openai": lambada,
    "google-research-datasets/nq_open": nq_open,
    "lighteval/siqa": siqa,
    "mandarjoshi/trivia_qa": triviaqa,
    "openai/gsm8k": gsm8k,
    "Rowan/hellaswag": hellaswag,
    "tau/commonsense_qa": commonsense_qa,
    "truthfulqa/truthful_qa": truthfulqa,
}
