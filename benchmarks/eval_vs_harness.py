"""Scoring speed against lm-evaluation-harness: the same model, tasks and examples, in one run.

    python -m benchmarks.eval_vs_harness --eval_dir=EVALS --limit=500

A random LLaMA of 20M parameters (float32, CPU) is saved in the Hugging Face format and scored on
ARC-easy, PIQA, HellaSwag and BoolQ (0 shots) and MMLU's anatomy (5 shots) by both. The harness
runs at the best of a few batch sizes. jaxllm is timed twice: cold, with reading, tokenizing and
compilation, and warm, as at every later checkpoint of a run. Every option's log-likelihood and the
accuracies are compared. Needs the extra `harness`, and the benchmarks' own files.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from jaxllm.runtime import tune_malloc
from tests.harness import models, run

ZERO_SHOT = ("arc_easy", "piqa", "hellaswag", "boolq")
FIVE_SHOT = ("mmlu_anatomy",)  # 5 shots are its default
LENGTH = 2048


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--eval_dir", type=Path, required=True)
    arguments.add_argument("--limit", type=int, default=500, help="examples of each task")
    arguments.add_argument("--batch_sizes", type=int, nargs="+", default=[4, 16, 64])
    args = arguments.parse_args()
    tune_malloc()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "model")
        with (args.eval_dir / "superglue/BoolQ/val.jsonl").open() as lines:
            texts = [json.loads(line)["passage"] for line in lines]
        models.save_llama(
            directory, texts, 8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=8,
            num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=LENGTH,
        )  # fmt: skip
        seconds, theirs = time_harness(directory, args)
        cold, warm, ours, count = time_jaxllm(directory, Path(folder), args)
    compare(ours, theirs)
    print(f"{count} examples, {os.cpu_count()} cores")
    print(f"harness      {seconds:7.1f} s  {count / seconds:7.1f} examples/s")
    print(f"jaxllm cold  {cold:7.1f} s  {count / cold:7.1f} examples/s  x{seconds / cold:.1f}")
    print(f"jaxllm warm  {warm:7.1f} s  {count / warm:7.1f} examples/s  x{seconds / warm:.1f}")


def time_harness(directory: Path, args: argparse.Namespace) -> tuple[float, dict[str, Any]]:
    """Seconds of the harness at its best batch size, and its samples by task."""
    trials = {
        size: _harness(directory, size, args.limit // 10, args)[0] for size in args.batch_sizes
    }
    best = min(trials, key=trials.__getitem__)
    print(
        "harness, a tenth of the examples, by batch size:",
        {k: f"{v:.1f} s" for k, v in trials.items()},
    )
    return _harness(directory, best, args.limit, args)


def _harness(
    directory: Path, batch_size: int, limit: int, args: argparse.Namespace
) -> tuple[float, dict[str, Any]]:
    model = run.harness_model(directory, batch_size, LENGTH)
    began = time.perf_counter()
    samples: dict[str, Any] = {}
    for shots, tasks in ((0, ZERO_SHOT), (5, FIVE_SHOT)):
        samples |= run.evaluate(model, tasks, shots, limit, args.eval_dir)["samples"]
    return time.perf_counter() - began, samples


def time_jaxllm(
    directory: Path, work: Path, args: argparse.Namespace
) -> tuple[float, float, dict[str, Any], int]:
    """Seconds cold and warm, a table of examples by task, and the number of examples."""
    from jaxllm.evaluation.config import EvalConfig
    from tests.harness.ours import Scored

    tasks = (*ZERO_SHOT, *FIVE_SHOT)
    config = EvalConfig(
        tasks=tasks, data_dir=str(args.eval_dir), max_examples=args.limit, tokens_per_batch=LENGTH
    )
    began = time.perf_counter()
    scored = Scored(directory, work, config, LENGTH)
    scored.evaluate()
    cold = time.perf_counter() - began
    began = time.perf_counter()
    records = scored.evaluate()
    warm = time.perf_counter() - began
    for record in records:
        if record.metric in ("padding", "sharing"):
            print(f"{record.task}: {record.metric} {record.value:.0%}")
    found = {task: scored.examples(task) for task in tasks}
    return cold, warm, found, sum(map(len, found.values()))


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Fail where an option's log-likelihood differs by more than 1e-3 nats."""
    for task, rows in ours.items():
        expected = [[float(r[0]) for r in sample["filtered_resps"]] for sample in theirs[task]]
        found = rows["log_likelihoods"].tolist()
        assert len(expected) == len(found), (task, len(expected), len(found))
        worst = max(np.max(np.abs(np.asarray(a) - b)) for a, b in zip(expected, found, strict=True))
        print(f"{task}: {len(found)} examples, largest difference {worst:.1e}")
        assert worst < 1e-3, task


if __name__ == "__main__":
    main()
