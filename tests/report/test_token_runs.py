"""Token losses of run directories, as a report reads them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from jaxllm.report import token_runs
from jaxllm.report.token_runs import RunData, token_studies
from jaxllm.run.layout import Layout
from jaxllm.run.token_losses import TokenLosses, TokenSet


def token_set(texts: int = 4) -> TokenSet:
    return TokenSet.of("books", ["ab"] * texts, [[1, 2]] * texts, [[1, 2]] * texts)


def scored(folder, name: str, params: float, texts: int = 4, nan_at: int | None = None) -> RunData:
    losses = TokenLosses(Layout(folder / name), "books")
    losses.write_set(token_set(texts))
    for step in (10, 20, 30, 40):
        values = np.full(2 * texts, step / 10, np.float32)
        values[0] = np.nan if step == nan_at else values[0]
        losses.write(step, values)
    clock = {"step": [10, 20, 30, 40], "tokens": [1e3, 2e3, 3e3, 4e3], "flops": [1e6] * 4}
    records = pd.DataFrame(clock | {"family": "suite", "params": params})
    return RunData(name, records, pd.DataFrame(), token_losses=[losses])


def test_runs_are_read_by_size(tmp_path) -> None:
    notes: list[str] = []
    runs = [scored(tmp_path, "large", 4e6), scored(tmp_path, "small", 1e6)]
    (study,) = token_studies(runs, notes)
    assert [run.run for run in study.runs] == ["small", "large"]
    assert [run.label for run in study.runs] == ["1M", "4M"]
    np.testing.assert_array_equal(study.runs[0].tokens, [1e3, 2e3, 3e3, 4e3])
    np.testing.assert_array_equal(study.runs[0].losses[:, 0], [1, 2, 3, 4])
    (study,) = token_studies([scored(tmp_path, "unknown", np.nan), *runs], notes)
    assert [run.run for run in study.runs] == ["small", "large", "unknown"]
    assert notes == []


def test_what_is_left_out_is_said(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [scored(tmp_path, "odd", 1e6, texts=5)]
    runs += [scored(tmp_path, f"run{k}", k * 1e6) for k in range(1, 6)]
    runs += [scored(tmp_path, "ill", 9e6, nan_at=20)]
    monkeypatch.setattr(token_runs, "RUNS", 3)
    monkeypatch.setattr(token_runs, "TOKENS", 5)
    notes: list[str] = []
    (study,) = token_studies(runs, notes)
    assert [run.run for run in study.runs] == ["run1", "run3", "ill"]
    assert list(study.runs[-1].steps) == [10, 30, 40] and np.isfinite(study.runs[-1].losses).all()
    assert study.token_set.texts == ("ab", "ab") and study.runs[0].losses.shape == (4, 4)
    for said in (
        "odd: the token set books has other tokens",
        "3 of 6 runs are read",
        "the first 4 of 8 tokens",
        "ill: 1 checkpoints with losses of books that are not finite",
    ):
        assert any(said in note for note in notes), notes


def test_unknown_tokens_are_steps_and_unscored_checkpoints_have_their_command(tmp_path) -> None:
    run = scored(tmp_path, "hf", 1e6)
    records = run.records.assign(tokens=np.nan)
    records = pd.concat([records, records.iloc[-1:].assign(step=50)])
    run = dataclasses.replace(run, records=records)
    notes: list[str] = []
    (study,) = token_studies([run], notes)
    assert study.runs[0].clock == "steps" and list(study.runs[0].tokens) == [10, 20, 30, 40]
    assert "1 scored checkpoints (step 50)" in notes[0] and "jaxllm.evaluate" in notes[0]
