"""The same numbers as lm-evaluation-harness, example by example, from its own task definitions.

A model is saved in the Hugging Face format. The harness scores it with PyTorch and Transformers,
jaxllm with its own decoder, packed; both read the same local files, each in the form it expects.
The random model says nothing sensible and so meets every corner of the tokenizer; the trained one
has learned the answers' form, so that options win by reason and generations end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxllm.evaluation.config import EvalConfig
from jaxllm.run.records import split_shots
from tests.evals.adapters import rows
from tests.harness import models

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytestmark = pytest.mark.slow

LENGTH, LIMIT = 1024, 12

# ours, the harness' name, shots, {the harness' metric: ours}
ACCURACY = {"acc,none": "accuracy"}
BOTH = {**ACCURACY, "acc_norm,none": "accuracy_per_char"}
CHOICES = [
    ("arc_easy", "arc_easy", 0, BOTH),
    ("arc_challenge_3shot", "arc_challenge", 3, BOTH),
    ("hellaswag", "hellaswag", 0, BOTH),
    ("piqa", "piqa", 0, BOTH),
    ("openbookqa_2shot", "openbookqa", 2, BOTH),
    ("boolq", "boolq", 0, ACCURACY),
    ("copa", "copa", 0, ACCURACY),
    ("winogrande", "winogrande", 0, ACCURACY),
    ("winogrande_2shot", "winogrande", 2, ACCURACY),
    ("commonsense_qa", "commonsense_qa", 0, ACCURACY),
    ("siqa", "social_iqa", 0, ACCURACY),
    ("mmlu_anatomy", "mmlu_anatomy", 5, ACCURACY),
    ("truthfulqa_mc1", "truthfulqa_mc1", 0, ACCURACY),
    ("truthfulqa_mc2", "truthfulqa_mc2", 0, {"acc,none": "probability_correct"}),
]
CLOZES = [("lambada_openai", "lambada_openai", 0)]
GENERATIONS = [
    (
        "gsm8k_2shot",
        "gsm8k",
        2,
        {
            "exact_match,strict-match": "exact_match_strict_match",
            "exact_match,flexible-extract": "exact_match_flexible_extract",
        },
    ),
]


def texts(evals: Path) -> list[str]:
    """What the tokenizer and the trained model learn from."""
    found = [
        f"{r['query']} {r['choices'][r['gold']]}" for r in rows(evals / "arc_easy/train.jsonl.gz")
    ]
    found += [
        f"Question: {r['question']}\nAnswer: {r['answer']}"
        for r in rows(evals / "gsm8k/train.jsonl.gz")
    ]
    return found  # fmt: skip


@pytest.fixture(scope="module", params=["random", "trained"])
def model_dir(request, shared_data, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    models.save_llama(
        directory, texts(shared_data / "evals"), 2000,
        steps=60 if request.param == "trained" else 0,
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def theirs(model_dir, eval_dir_with_shots):
    """The harness' results: (its name, shots) -> (metrics, samples)."""
    from tests.harness import run

    model = run.harness_model(model_dir, 4, LENGTH)
    found = {}
    by_shots: dict[int, list[str]] = {}
    for task, _, shots, *_ in (*CHOICES, *CLOZES, *GENERATIONS):
        by_shots.setdefault(shots, []).append(split_shots(task)[0])
    for shots, names in by_shots.items():
        results = run.evaluate(model, names, shots, LIMIT, eval_dir_with_shots)
        for name, samples in results["samples"].items():
            found[name, shots] = results["results"][name], samples
    return found


@pytest.fixture(scope="module")
def ours(model_dir, eval_dir_with_shots, tmp_path_factory):
    """Our records (by task, as it was asked for) and rows of examples."""
    from tests.harness.ours import Scored

    names = tuple(task[0] for task in (*CHOICES, *CLOZES, *GENERATIONS))
    config = EvalConfig(
        tasks=names,
        data_dir=str(eval_dir_with_shots),
        max_examples=LIMIT,
        tokens_per_batch=2 * LENGTH,
    )
    return Scored(model_dir, tmp_path_factory.mktemp("ours"), config, LENGTH).evaluate_by_task()


def log_likelihoods(samples):
    """Each example's log-likelihoods, in the harness' order of its options."""
    return [[float(response[0]) for response in s["filtered_resps"]] for s in samples]


@pytest.mark.parametrize(("task", "name", "shots", "metrics"), CHOICES)
def test_options_score_alike(ours, theirs, task, name, shots, metrics):
    values, rows = ours[task]
    expected, samples = theirs[name, shots]
    found = [list(row) for row in rows.log_likelihoods]
    assert len(found) == len(samples) == LIMIT
    for mine, reference in zip(found, log_likelihoods(samples), strict=True):
        np.testing.assert_allclose(mine, reference, atol=1e-3, rtol=0)
        assert np.argmax(mine) == np.argmax(reference)
    for reference, mine in metrics.items():
        assert values[mine] == pytest.approx(expected[reference], abs=1e-4)


@pytest.mark.parametrize(("task", "name", "shots"), CLOZES)
def test_last_words_score_alike(ours, theirs, task, name, shots):
    values, rows = ours[task]
    expected, samples = theirs[name, shots]
    reference = [scores[0] for scores in log_likelihoods(samples)]
    np.testing.assert_allclose(rows.log_likelihood, reference, atol=1e-3, rtol=0)
    assert values["exact_match"] == expected["acc,none"]
    assert values["perplexity"] == pytest.approx(expected["perplexity,none"], rel=1e-3)


@pytest.mark.parametrize(("task", "name", "shots", "metrics"), GENERATIONS)
def test_answers_are_the_same_texts_and_count_alike(ours, theirs, task, name, shots, metrics):
    values, rows = ours[task]
    expected, samples = theirs[name, shots]
    # several filters give several samples of one answer
    answers = {sample["doc_id"]: sample["resps"][0][0] for sample in samples}
    assert [text.strip() for text in rows.prediction] == [
        answers[number].strip() for number in sorted(answers)
    ]
    for reference, mine in metrics.items():
        assert values[mine] == pytest.approx(expected[reference], abs=1e-6)
