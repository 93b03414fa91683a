"""The notebook runs top to bottom on a small cut of the suite it is about."""

import gzip
import json

import altair as alt
import pandas as pd
import pytest

from tests.colab.notebooks import execute, has_outputs

RUNS = ("70m", "160m", "1.4b", "2.8b", "6.9b")


@pytest.fixture
def cut(shared_data, tmp_path):
    """Five zero-shot runs, without exams: what is left takes seconds."""
    for size in RUNS:
        name = f"pythia-{size}.zero-shot.jsonl.gz"
        with gzip.open(shared_data / "reference" / "pythia" / "v1" / name, "rt") as lines:
            rows = [json.loads(line) for line in lines]
        for row in rows:
            parts = ("hendrycksTest", "crows")
            results = row["results"].items()
            row["results"] = {k: v for k, v in results if not k.startswith(parts)}
        (tmp_path / name.removesuffix(".gz")).write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_it_runs_top_to_bottom(cut, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_EVALS", str(cut))
    monkeypatch.setenv("REPORT_DIR", str(tmp_path / "report"))
    names, shown = execute("trajectories")
    frames = [each for each in shown if isinstance(each, pd.DataFrame)]
    assert len(frames) == 5
    assert all(len(frame) for frame in frames)
    pictures = [each for each in shown if isinstance(each, alt.ConcatChart)]
    assert pictures[0].to_dict()["concat"]
    assert names["records"].run.nunique() == len(RUNS)
    forecasts = names["ahead"].table
    assert names["run"] == "pythia-6.9b"
    assert set(forecasts.finished_runs) == {len(RUNS) - 1}
    assert not names["tested"].refused
    text = (tmp_path / "report" / "index.html").read_text()
    assert "How does it compare across sizes?" in text
    assert "This analysis failed" not in text


def test_it_is_committed_without_outputs() -> None:
    assert not has_outputs("trajectories")
