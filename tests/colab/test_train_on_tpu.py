"""The notebook trains, scores and shows a run from top to bottom, here in few steps on the CPU."""

import altair as alt
import tensorboard.notebook

from tests.colab.notebooks import execute, has_outputs
from tests.conftest import REPOSITORY

FEW_STEPS = (
    "--gin.TRAIN_STEPS=4", "--gin.ScheduleConfig.warmup_steps=1", "--gin.EvalConfig.max_examples=8",
    "--gin.CheckpointConfig.every_steps=2", "--gin.EVAL_TASKS=('keyword','counting')",
    "--gin.DataConfig.weights={'reference':1.0}",
)  # fmt: skip


def test_it_runs_top_to_bottom(tmp_path, monkeypatch, capfd) -> None:
    run = tmp_path / "run"
    watched: list[str] = []
    monkeypatch.setenv("RUN_DIR", str(run))
    monkeypatch.setenv("TRAIN_FLAGS", " ".join(FEW_STEPS))
    monkeypatch.setattr(tensorboard.notebook, "start", watched.append)  # else it stays running
    monkeypatch.chdir(REPOSITORY)
    names, shown = execute("train_on_tpu")
    printed = capfd.readouterr().out
    assert "CpuDevice(id=0)" in printed
    assert "step 4" in printed
    assert watched == [f"--logdir {run}"]
    assert set(names["report"].points.task) >= {"keyword", "counting"}
    [chart] = [each for each in shown if isinstance(each, alt.ConcatChart)]
    assert len(chart.to_dict()["concat"]) >= 2
    assert "<html" in shown[-1]._repr_html_()
    assert list((run / "tensorboard").glob("events.*"))


def test_it_is_committed_without_outputs() -> None:
    assert not has_outputs("train_on_tpu")
