"""Two-step ladders: planted truth, refusals, and published runs above the ladder."""

import dataclasses
import gzip
import json
import math

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.scaling.chinchilla import parametric
from jaxllm.analysis.scaling.fit import finished
from jaxllm.analysis.scaling.ladder import DIRECT, TWO_STEPS, ladder
from tests.analysis.scaling.helpers import covers


def soft(n, d):
    return 0.4 + 40 / n**0.25 + 90 / d**0.25


def accuracy(x):
    return 0.25 + 0.7 / (1 + np.exp(4 * (x - 1.0)))


def rungs(seed=0, noise=0.01, checkpoints=6):
    """Sizes x token counts as in the paper, with the checkpoints of each run."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in (1.9e8, 3.7e8, 7.6e8, 1.3e9):
        for multiple in (1, 2, 5, 10):
            for part in np.linspace(0.3, 1, checkpoints):
                d = 20 * n * multiple * part
                x = soft(n, d) * math.exp(rng.normal(0, noise / 3))
                y = accuracy(x) + rng.normal(0, noise)
                rows.append((f"{n:.0f} x{multiple}", n, d, x, y))
    return pd.DataFrame(rows, columns=["run", "params", "tokens", "soft", "accuracy"])


def test_the_run_above_the_ladder_is_predicted_within_its_interval() -> None:
    """7B on 4T tokens, from at most 1.3B; 8 simulations, each with an accuracy of its own."""
    hits, errors = [], []
    for seed in range(8):
        rng = np.random.default_rng(1000 + seed)
        ahead = ladder(rungs(seed), chance=0.25, draws=40, seed=seed).at(6.9e9, 3.9e12)
        truth = accuracy(soft(6.9e9, 3.9e12)) + rng.normal(0, 0.01)
        hits.append(covers(ahead.accuracy, truth))
        errors.append(abs(ahead.accuracy.value - truth))
    assert np.mean(hits) >= 0.8
    assert np.mean(errors) < 0.025


def test_an_accuracy_stays_a_share() -> None:
    found = ladder(rungs(noise=0.05), chance=0.25, draws=40)
    for method in (TWO_STEPS, DIRECT):
        ahead = dataclasses.replace(found, method=method).at(1e12, 1e14).accuracy
        assert 0 <= ahead.low <= ahead.value <= ahead.high <= 1


def test_without_noise_both_steps_come_back() -> None:
    found = ladder(rungs(noise=0), chance=0.25, draws=30)
    bottom, top, steepness, middle = found.draws[0]
    assert bottom == 0.25
    assert top == pytest.approx(0.95, abs=0.01)
    assert steepness == pytest.approx(4, rel=0.02)
    assert middle == pytest.approx(1.0, abs=0.02)
    at = found.at(6.9e9, 3.9e12)
    assert at.soft.value == pytest.approx(soft(6.9e9, 3.9e12), rel=0.01)
    assert "expected at an accuracy" in found.sentence


def test_chance_for_ever_is_no_ladder() -> None:
    rng = np.random.default_rng(5)
    found = 0
    for seed in range(4):
        data = rungs(seed)
        data["accuracy"] = 0.25 + rng.normal(0, 0.01, len(data))
        found += not ladder(data, chance=0.25, draws=30).refused
    assert found <= 1  # 5 % nominal; 1 of 4 is its 99 % quantile


def test_refusals_name_the_step() -> None:
    one_multiple = rungs()[lambda t: t.run.str.endswith("x1")]
    refused = ladder(one_multiple, chance=0.25, draws=30)
    assert refused.refused.startswith("step 1") and refused.refused in refused.sentence
    assert math.isnan(refused.at(1e9, 1e10).accuracy.value)
    silent = ladder(rungs().assign(accuracy=math.nan), draws=30)
    assert "both metrics" in silent.refused
    assert ladder(rungs().assign(accuracy=0.3), draws=30).refused
    assert ladder(rungs().head(0), draws=30).refused


def test_five_runs_share_an_exponent() -> None:
    """The design of Gadre et al. (arXiv 2403.08540): four sizes, one of them over-trained."""
    law = lambda n, d: 1.8 + 100 / n**0.27 + 200 / d**0.27
    designs = [(n, 20 * n) for n in (1.1e7, 7.9e7, 1.5e8, 4.1e8)] + [(1.1e7, 320 * 1.1e7)]
    runs = pd.DataFrame(
        [(f"{n}-{d}", n, d, law(n, d), accuracy(law(n, d) / 3)) for n, d in designs],
        columns=["run", "params", "tokens", "soft", "accuracy"],
    )
    found = ladder(runs, chance=0.25, draws=20)
    assert found.at(1.4e9, 9e11).soft.value == pytest.approx(law(1.4e9, 9e11), rel=0.01)
    assert any("One exponent" in note for note in found.notes)


OLMO = {
    "downstream_bpb/hellaswag_val": 0.002565, "downstream_bpb/piqa_val": 0.003104,
    "downstream_bpb/arc_challenge_test": 0.004845, "downstream_bpb/socialiqa_val": 0.005397,
    "downstream_bpb/openbookqa_test": 0.005942, "downstream_bpb/csqa_val": 0.010455,
    "downstream_bpb/arc_easy_test": 0.011775, "c4_en-validation/CrossEntropyLoss": 0.002473,
}  # fmt: skip


@pytest.fixture(scope="module")
def olmo(shared_data):
    """Evaluations of the 16 runs of Bhagia et al., of four sizes at 1, 2, 5 and 10 times 20 N."""
    path = shared_data / "reference" / "olmo_ladder"
    parts = []
    for size in pd.read_csv(path / "models.csv.gz").itertuples():
        for times in (1, 2, 5, 10):
            run = f"{size.files}-{times}xC"
            part = pd.read_csv(path / f"{run}.csv.gz").assign(run=run, params=size.n)
            parts.append(part.rename(columns={"throughput/total_tokens": "tokens"}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("name", OLMO)
def test_the_published_errors_of_step_1_come_out(olmo, name) -> None:
    column = f"eval/{name}" + ("_rc_5shot_bpb" if "bpb" in name else "")
    law = parametric(finished(olmo.assign(loss=olmo[column]), "loss"), draws=0)
    assert len(law.table) == 16
    assert np.abs(law.table.fitted / law.table.loss - 1).mean() == pytest.approx(OLMO[name], 1e-3)


def test_the_method_that_predicts_the_largest_size_is_chosen(olmo) -> None:
    name = "downstream/arc_easy_test_rc_5shot"
    soft, accuracy = (
        olmo[f"eval/{n}"] for n in (name.replace("/", "_bpb/") + "_bpb", f"{name}_len_norm")
    )
    found = ladder(olmo.assign(soft=soft, accuracy=accuracy), chance=0.25, draws=0)
    assert set(found.errors) == {TWO_STEPS, DIRECT} and max(found.errors.values()) < 0.03
    better = found.errors[DIRECT] < found.errors[TWO_STEPS] / 2
    assert found.method == (DIRECT if better else TWO_STEPS)


def test_published_runs_above_the_ladder(shared_data) -> None:
    """Gadre et al. (arXiv 2403.08540): from runs of at most 0.4B parameters, the loss and the
    accuracies of their 1.4B and 7B runs, up to 32 times over-trained."""
    path = shared_data / "reference" / "scaling_overtraining"
    with gzip.open(path / "models.jsonl.gz", "rt") as lines:
        models = [json.loads(line) for line in lines]
    with gzip.open(path / "evals.jsonl.gz", "rt") as lines:
        results = [json.loads(line) for line in lines]
    scores = {r["file"].split("evaluation_")[1].split("_heavy")[0]: r for r in results}
    rows = []
    for model in models:
        losses = [r["loss"] for r in model["results"] if "/c4_val/" in r["val_data"][0]]
        metrics = scores[model["name"]]["eval_metrics"]["icl"]
        rows.append(
            {"run": model["name"], "data": model["dataset_name"], "soft": losses[0],
             "params": model["hyperparameters"]["params"],
             "tokens": model["hyperparameters"]["tokens"], **metrics}
        )  # fmt: skip
    table = pd.DataFrame(rows)
    chances = {"hellaswag_zeroshot": 0.25}
    hits, errors, last, loss_errors = [], [], [], []
    for _, runs in table.groupby("data"):
        small, large = runs[runs.params < 5e8], runs[runs.params > 5e8]
        one = parametric(small.assign(loss=small.soft), tied=True, draws=0)
        of_one = np.abs(one.losses(large.params, large.tokens) / large.soft - 1)
        for task, chance in chances.items():
            found = ladder(small.assign(accuracy=small[task]), chance=chance, draws=20)
            for run in large.itertuples():
                ahead = found.at(run.params, run.tokens)
                truth = getattr(run, task)
                hits.append(covers(ahead.accuracy, truth))
                errors.append(abs(ahead.accuracy.value - truth))
                last.append(abs(small[task].max() - truth))
                loss_errors.append(abs(ahead.soft.value / run.soft - 1))
            assert np.mean(loss_errors[-3:]) <= of_one.mean() + 1e-4
    assert len(errors) == 6
    assert np.mean(loss_errors) < 0.03
    assert np.mean(errors) < 0.05 and np.mean(errors) < 0.6 * np.mean(last)
    assert np.mean(hits) >= 0.75
