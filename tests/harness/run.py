"""lm-evaluation-harness with its own task definitions, on local data and a local model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.evals import test_harness_passages, test_harness_questions


def harness_model(directory: Path, batch_size: int, max_length: int) -> Any:
    """The harness' model on a Hugging Face directory, in float32, with BOS as in training."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # beside the other tests; more than one are in each other's way
    return HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(directory, dtype="float32"),
        tokenizer=AutoTokenizer.from_pretrained(directory),
        batch_size=batch_size,
        max_length=max_length,
        add_bos_token=True,
        device="cpu",
    )


def evaluate(
    model: Any, tasks: Sequence[str], shots: int, limit: int, directory: Path
) -> dict[str, Any]:
    """`lm_eval.simple_evaluate` on the task definitions that the prompt tests compare with.

    Args:
      model: of `harness_model`.
      tasks: names of ours.
      shots: for all of them.
      limit: the first so many examples of each.
      directory: the benchmarks' files in their authors' form.

    Returns:
      Its results, with the samples of every task (by its own name) in the order of the examples.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    made = []
    for name in tasks:
        definition, _, splits = {**test_harness_questions.SETS, **test_harness_passages.SETS}[name]
        made.append(test_harness_questions.harness_task(definition, splits(directory), limit))
    results = simple_evaluate(
        model=model, tasks=made, num_fewshot=shots, limit=limit, log_samples=True,
        # Reading the harness' ten thousand definitions takes longer than scoring.
        task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, verbosity="ERROR",
    )  # fmt: skip
    for found in results["samples"].values():
        found.sort(key=lambda sample: sample["doc_id"])
    return results
