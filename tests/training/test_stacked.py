"""Runs of a stack are what they are alone: their files, and whatever happens to one of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest

from jaxllm import train
from jaxllm.errors import UserError
from jaxllm.report.alarms import RUN, HealthWriter
from jaxllm.run import lease
from jaxllm.run.run import Run
from jaxllm.training import stacked
from jaxllm.training.preemption import Preemption
from tests.chaos.driver import read_item
from tests.training.processes import make_home

MORE = """
BATCH_SIZE = 8
TRAIN_STEPS = 20
TrainConfig.log_every = 5
CheckpointConfig.every_steps = 10
"""
RUNS = {  # what differs
    "seed": ["--gin.SEED=1"],
    "rate": ["--gin.ScheduleConfig.kind=constant", "--gin.ScheduleConfig.peak_lr=5e-3"],
    "mixture": ["--gin.DataConfig.weights={'words': 0.3, 'more': 0.7}"],
    "wild": ["--gin.ScheduleConfig.peak_lr=1e30"],
}


@pytest.fixture(scope="module")
def home(no_report: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two domains, its config, and each of RUNS alone."""
    home = make_home(tmp_path_factory.mktemp("stacked"), MORE)
    shutil.copytree(home / "corpus" / "words", home / "corpus" / "more")
    for name, flags in RUNS.items():
        if name != "wild":
            run(home, f"--gin.MODEL_DIR={home}/alone/{name}", *flags)
    return home


@pytest.fixture(scope="module")
def said(home: Path) -> str:
    """What the stack of RUNS printed."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert stack(home, "stack", *RUNS) == 1
    return out.getvalue()


def run(home: Path, *flags: str) -> int:
    gin.clear_config()
    return train.main([f"--gin_file={home}/tiny.gin", *flags])


def stack(home: Path, folder: str, *names: str, more: dict[str, list[str]] | None = None) -> int:
    known = RUNS | (more or {})
    flags = [[f"--gin.MODEL_DIR={home}/{folder}/{name}", *known[name]] for name in names]
    (home / "stack.json").write_text(json.dumps(flags))
    return run(home, f"--stack={home}/stack.json")


def metrics(run: Run) -> list[dict[str, Any]]:
    names = ("step", "tokens", "loss", "grad_norm", "param_norm", "learning_rate")
    return [
        {k: v for k, v in line.items() if k in names or k.startswith("loss/")}
        for line in run.metrics_lines.read()[0]
    ]


def check_same(ours: Path, theirs: Path, tolerance: float) -> None:
    """Check that two runs have the same metrics, checkpoints and records."""
    one, other = Run.open(ours), Run.open(theirs)
    for mine, its in zip(metrics(one), metrics(other), strict=True):
        assert mine == pytest.approx(its, rel=tolerance)
    lines = [
        [(e.step, e.kind, e.tokens, e.domain_tokens) for e in r.entries()] for r in (one, other)
    ]
    assert lines[0] == lines[1] and [entry.step for entry in one.available()] == [0, 10, 20]
    for item in ("model", "training"):
        mine, its = (read_item(Path(r.layout.checkpoint(20)) / item) for r in (one, other))
        assert mine.keys() == its.keys()
        for name, value in its.items():
            scale = max(np.abs(value).max(), 1e-30)
            np.testing.assert_allclose(mine[name] / scale, value / scale, atol=tolerance, rtol=0)
    tables = [r.records().drop(columns=["run", "family", "seconds"]) for r in (one, other)]
    tables = [t[t.metric != "padding"].reset_index() for t in tables]  # it depends on the mesh
    assert len(tables[0]) == len(tables[1]) > 0
    np.testing.assert_allclose(tables[0].value, tables[1].value, rtol=tolerance)
    assert (
        tables[0]
        .drop(columns=["value", "stderr"])
        .equals(tables[1].drop(columns=["value", "stderr"]))
    )


@pytest.mark.parametrize("name", ["seed", "rate", "mixture"])
def test_each_run_is_what_it_is_alone(home: Path, said: str, name: str) -> None:
    check_same(home / "stack" / name, home / "alone" / name, 1e-5)
    configs = [Run.open(home / of / name).config() for of in ("stack", "alone")]
    assert configs[0].replace("/stack/", "/alone/") == configs[1]


def test_a_run_that_diverges_leaves_the_others_alone(home: Path, said: str) -> None:
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert f"{home}/stack/wild: the " in line and " at step " in line
    assert Run.open(home / "stack" / "wild").entries()[-1].step == 0
    at_once = said.index(f"{home}/stack/wild leaves the stack: the ")
    assert at_once < said.index("step 10: scored")


def test_each_of_runs_that_all_leave_has_its_reason(home: Path) -> None:
    wilder = ["--gin.SEED=1", *RUNS["wild"]]
    with pytest.raises(UserError, match="all runs have left the stack") as ended:
        stack(home, "left", "wild", "wilder", more={"wilder": wilder})
    reasons = []
    for name in ("wild", "wilder"):
        rows = Run(home / "left" / name).alarm_lines.read()[0]
        reasons += [row["reason"] for row in rows if row["subjects"] == ["stopped"]]
        assert f"{home}/left/{name}: {reasons[-1]}" in str(ended.value)
    assert len(set(reasons)) == len(reasons) == 2


def test_runs_that_ended_well_are_not_told_of_a_later_error(
    home: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("seed", "rate"):
        shutil.copytree(home / "stack" / name, home / "later" / name)
    shutil.rmtree(home / "later" / "rate" / "checkpoints" / "20")

    def train_group(runs: Any, *_: Any) -> stacked.StackOutcome:
        (run,) = runs
        for writer in run.writers:
            writer.begin(20)
        if run.experiment.model_dir.endswith("seed"):
            raise UserError("no space")
        return stacked.StackOutcome(finished=True, interrupted=False)

    monkeypatch.setattr(stacked, "train_stack", train_group)
    with pytest.raises(UserError, match="no space"):
        stack(home, "later", "seed", "rate")
    for name, expected in (("seed", ["no space"]), ("rate", [])):
        rows = Run(home / "later" / name).alarm_lines.read()[0]
        assert [row["reason"] for row in rows if row["check"] == RUN] == expected


def test_a_run_goes_on_alone(home: Path, said: str) -> None:
    for folder in ("stack", "alone"):
        shutil.copytree(home / folder / "seed", home / "on" / folder)
        run(home, f"--gin.MODEL_DIR={home}/on/{folder}", "--gin.SEED=1", "--gin.TRAIN_STEPS=30")
    ours, theirs = (metrics(Run.open(home / "on" / folder)) for folder in ("stack", "alone"))
    assert ours[-1]["step"] == 30 and ours[-1] == pytest.approx(theirs[-1], rel=1e-4)


def test_an_interrupted_stack_goes_on_bitwise(home: Path, said: str, monkeypatch: Any) -> None:
    done: list[int] = []
    update = stacked._Stack.update
    count = lambda self, batch: done.append(update(self, batch))  # type: ignore[func-returns-value]
    monkeypatch.setattr(stacked._Stack, "update", count)
    monkeypatch.setattr(Preemption, "requested", lambda self: len(done) == 7)
    assert stack(home, "twice", "seed", "rate") == 1
    monkeypatch.undo()
    assert [entry.kind for entry in Run.open(home / "twice" / "seed").entries()][-1] == "preempted"
    assert stack(home, "twice", "seed", "rate") == 0
    assert stack(home, "once", "seed", "rate") == 0
    for name in ("seed", "rate"):
        ours, theirs = (metrics(Run.open(home / folder / name)) for folder in ("twice", "once"))
        assert ours == theirs


def test_a_run_that_loses_its_lease_leaves_the_others_alone(
    home: Path, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At step 12; the lines of step 15 are refused."""
    done: list[int] = []
    update = stacked._Stack.update

    def lose(self: Any, batch: Any) -> None:
        update(self, batch)
        done.append(self.step)
        if self.step == 12:
            (home / "lost" / "rate" / "writer.json").unlink()

    monkeypatch.setattr(stacked._Stack, "update", lose)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.0)  # looks at each write
    assert stack(home, "lost", "seed", "rate") == 1
    out = capsys.readouterr().out
    assert f"error: {home}/lost/rate: this run may not write any more" in out
    assert "is deleted" in out and done[-1] == 20 and "ALARM" not in out
    check_same(home / "lost" / "seed", home / "alone" / "seed", 1e-5)
    assert [entry.step for entry in Run.open(home / "lost" / "rate").entries()] == [0, 10]


def test_runs_at_different_steps_follow_one_another(home: Path, said: str) -> None:
    for name in ("seed", "rate"):
        shutil.copytree(home / "stack" / name, home / "crashed" / name)
    shutil.rmtree(home / "crashed" / "rate" / "checkpoints" / "20")
    assert stack(home, "crashed", "seed", "rate") == 0
    for name in ("seed", "rate"):
        check_same(home / "crashed" / name, home / "alone" / name, 1e-5)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gin.BATCH_SIZE=4", "differ in DataConfig.batch_size"),
        ("--gin.ModelConfig.mlp_dim=64", "differ in ModelConfig"),
        ("--gin.TRAIN_STEPS=30", "differ in TrainConfig.steps"),
        ("--gin.EvalConfig.max_examples=4", "its EvalConfig differs"),
        ("--gin.TrainConfig.stages=({'tokens': 1280}, {'weights': {'words': 1}})", "stages are"),
    ],
)
def test_what_cannot_be_stacked_is_refused(home: Path, flag: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stack(home, "refused", "seed", "other", more={"other": [flag]})
    for content in ("{}", "[]", "[1]", "[[1]]", "no"):
        (home / "bad.json").write_text(content)
        with pytest.raises(UserError, match="not a list of each run's list of flags"):
            run(home, f"--stack={home}/bad.json")


def test_a_run_that_cannot_begin_leaves_the_others_alone(
    home: Path, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whose corpus is missing tells of it, too."""
    told: list[str] = []
    monkeypatch.setattr(HealthWriter, "stopped", lambda self, error: told.append(str(error)))
    (home / "way").mkdir()
    (home / "way" / "rate").write_text("in the way")
    missing = {"missing": ["--gin.DataConfig.weights={'nowhere': 1}"]}
    assert stack(home, "way", "seed", "rate", "missing", more=missing) == 1
    out = capsys.readouterr().out
    assert f"error: {home}/way/rate: " in out and f"error: {home}/way/missing: " in out
    assert [reason.split(",")[0] for reason in told] == ["DataConfig.weights names nowhere"]
    check_same(home / "way" / "seed", home / "alone" / "seed", 1e-5)
