"""Reading, reasoning and math prompts are letter by letter lm-evaluation-harness' own."""

import json

import pytest

from jaxllm.evaluation.tasks import Choice
from tests.evals.adapters import lines, rows
from tests.evals.test_harness_questions import compared, jsonl

pytestmark = pytest.mark.slow


def yes_or_no(path):
    return [{**row, "label": int(row["label"])} for row in jsonl(path)]


def conversations(path):
    def texts(several):
        return {"input_text": [turn["input_text"] for turn in several]}

    return [
        {
            "story": row["story"],
            "questions": texts(row["questions"]),
            "answers": texts(row["answers"]),
            "additional_answers": {k: texts(v) for k, v in row["additional_answers"].items()},
        }
        for row in json.loads(path.read_text())["data"]
    ]


def stories(path):
    kinds = ("number", "date", "spans")
    return [
        {
            "passage": story["passage"],
            "question": row["question"],
            "query_id": row["query_id"],
            "answer": row["answer"],
            "validated_answers": {k: [a[k] for a in row["validated_answers"]] for k in kinds},
        }
        for story in json.loads(path.read_text()).values()
        for row in story["qa_pairs"]
    ]


def table(path):
    pairs = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [
        {"question": q, "answer": None, "answer_number": int(n.replace(",", ""))} for q, n in pairs
    ]


def gsm8k(d):
    return {split: list(rows(d / f"gsm8k/{split}.jsonl.gz")) for split in ("test", "train")}


def bbh(d):
    return {"test": json.loads("\n".join(lines(d / "bbh/navigate.json.gz")))["examples"]}


# name -> the harness' definition, numbers of shots, its splits
SETS = {
    "boolq": ("super_glue/boolq/default.yaml", (0, 3), lambda d: {
        "train": yes_or_no(d / "superglue/BoolQ/train.jsonl"),
        "validation": yes_or_no(d / "superglue/BoolQ/val.jsonl"),
    }),
    "coqa": ("coqa/default.yaml", (0,), lambda d: {
        "train": conversations(d / "coqa/coqa-dev-v1.0.json")[:40],
        "validation": conversations(d / "coqa/coqa-dev-v1.0.json"),
    }),
    "drop": ("drop/default.yaml", (0,), lambda d: {
        "train": stories(d / "drop/drop_dataset_dev.json")[:40],
        "validation": stories(d / "drop/drop_dataset_dev.json"),
    }),
    "lambada_openai": ("lambada/lambada_openai.yaml", (0,), lambda d: {
        "test": jsonl(d / "lambada/lambada_test.jsonl"),
    }),
    "gsm8k": ("gsm8k/gsm8k.yaml", (0, 5), gsm8k),
    "gsm8k_cot": ("gsm8k/gsm8k-cot.yaml", (0, 8), gsm8k),
    "bbh_fewshot_navigate": ("bbh/fewshot/navigate.yaml", (0, 3), bbh),
    "bbh_cot_fewshot_navigate": ("bbh/cot_fewshot/navigate.yaml", (0, 3), bbh),
    "mgsm_native_cot_zh": ("mgsm/native_cot/mgsm_native_cot_zh.yaml", (0,), lambda d: {
        "train": table(d / "mgsm/mgsm_zh.tsv")[:8], "test": table(d / "mgsm/mgsm_zh.tsv"),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_prompts_are_the_harness_ones(name, eval_dir):
    if name.startswith("coqa"):  # the harness' module needs what Transformers 5 has dropped
        pytest.importorskip("transformers.data.metrics")
    for task, example, theirs, doc, requests in compared(name, *SETS[name], eval_dir):
        assert "".join([example.description, *example.shots, example.context]) == requests[0][0]
        if isinstance(example, Choice):
            assert example.options == tuple(option for _, option in requests)
            assert example.answer == theirs.doc_to_target(doc)
        elif task.kind == "cloze":
            assert example.targets[0] == requests[0][1]
        else:
            assert tuple(requests[0][1]["until"]) == task.stop
