"""lm-evaluation-harness with its own task definitions, on local data and a local model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.harness.hub import DATASETS


def harness_model(directory: Path, batch_size: int, max_length: int) -> Any:
    """The harness' model on a Hugging Face directory, in float32, with BOS as in training."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(directory, dtype="float32"),
        tokenizer=AutoTokenizer.from_pretrained(directory),
        batch_size=batch_size,
        max_length=max_length,
        add_bos_token=True,
        device="cpu",
    )


def evaluate(
    model: Any, tasks: Sequence[str], shots: int | None, limit: int | None, evals: Path
) -> dict[str, Any]:
    """`lm_eval.simple_evaluate` with `datasets.load_dataset` answered from `evals`.

    Returns:
      Its results, with the samples of every task in the order of the examples.
    """
    import datasets
    from lm_eval import simple_evaluate

    def load(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        splits = DATASETS[path](evals, name)
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(found) for split, found in splits.items()}
        )

    original, datasets.load_dataset = datasets.load_dataset, load
    try:
        results = simple_evaluate(
            model=model, tasks=list(tasks), num_fewshot=shots, limit=limit, log_samples=True,
            bootstrap_iters=0, verbosity="ERROR",
        )  # fmt: skip
    finally:
        datasets.load_dataset = original
    for found in results["samples"].values():
        found.sort(key=lambda sample: sample["doc_id"])
    return results
