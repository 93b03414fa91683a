"""Which axis makes planted curves one curve."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.collapse import collapse
from jaxllm.analysis.registry import Study
from tests.analysis.planted import sigmoid, table

SIZES = (1e8, 3e8, 1e9, 3e9, 1e10)
TOKENS = np.logspace(9, 11.5, 24).astype(np.int64)


def loss_of(size: float) -> np.ndarray:
    return 1.7 + 400 / size**0.34 + 400 / TOKENS**0.28


def suite(rng: np.random.Generator, axis: str, noise: float = 0.005) -> pd.DataFrame:
    """Five sizes whose curves are one curve over `axis`, with their losses as bits per byte."""
    parts = []
    for size in SIZES:
        over = {
            "tokens": np.log10(TOKENS) - 10.3,
            "flops": np.log10(6 * size * TOKENS) - 20.5,
            "loss": 6 * (2.8 - loss_of(size)),
        }[axis]
        values = {
            task: 0.25 + top * sigmoid(over, 0, 0.5) + rng.normal(0, noise, len(over))
            for task, top in (("a", 0.6), ("b", 0.4))
        }
        run = {"tokens": TOKENS, "run": f"{size:g}", "params": size}
        parts.append(table(values, stderr=noise, **run))
        parts.append(table({"text": loss_of(size)}, metric="bits_per_byte", chance=np.nan, **run))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("axis", ["tokens", "flops", "loss"])
def test_finds_the_planted_axis(axis) -> None:
    found = collapse(Study(suite(np.random.default_rng(0), axis)))
    assert f"fall together best over {axis} " in found.sentence
    assert set(found.table.task) == {"a", "b"}  # the loss does not predict itself
    best = found.table[found.table.axis == axis]
    assert best.best.all() and (best.error < 2 * best.noise).all()
    assert (found.table[found.table.axis != axis].error > 2 * best.noise.max()).all()


def test_noise_has_no_best_axis() -> None:
    rng = np.random.default_rng(1)
    certain = []
    for _ in range(15):
        records = suite(rng, "tokens")
        noise = 0.25 + rng.normal(0, 0.01, len(records))
        records["value"] = records.value.where(records.metric != "accuracy", noise)
        found = collapse(Study(records))
        certain.append("best over" in found.sentence)
        spread = found.table.groupby("task").error.agg(lambda e: e.max() / e.min())
        assert (spread < 1.5).all()
    assert np.mean(certain) <= 0.2


def test_a_logged_loss_serves_as_well() -> None:
    records = suite(np.random.default_rng(2), "loss")
    losses = records[records.task == "text"].rename(columns={"value": "loss"})
    without = records[records.task != "text"]
    found = collapse(Study(without, losses=losses[["run", "tokens", "loss"]]))
    assert "best over loss" in found.sentence
    assert any("No loss" in note for note in collapse(Study(without)).notes)


def test_needs_three_sizes() -> None:
    records = suite(np.random.default_rng(3), "flops")
    assert "three sizes" in collapse(Study(records[records.params > 2e9])).refused


def test_pythia_curves_fall_together_over_loss(pythia_records) -> None:
    found = collapse(Study(pythia_records[pythia_records.metric != "accuracy_per_char"]))
    assert "best over loss" in found.sentence
    errors = found.table.groupby("axis").error.mean()
    assert errors["loss"] < 0.6 * errors[["tokens", "flops"]].min()
    assert "lambada_openai" not in set(found.table.task)
