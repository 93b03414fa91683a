"""A run directory is read as far as it was written, and what is no run is named."""

import pytest

from jaxllm.errors import UserError
from jaxllm.run.run import Run
from tests.simulated_run import STEPS, TASKS, simulate


def test_tables_of_a_run(tmp_path) -> None:
    run = Run.open(simulate(tmp_path))
    assert set(run.records().task) == {task.name for task in TASKS}
    assert tuple(run.checkpoints().step) == STEPS
    assert run.metrics().step.is_monotonic_increasing
    assert run.problems() == ()
    assert run.name == "simulated"


def test_a_half_written_last_line_is_counted(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    run = Run.open(tmp_path)
    assert list(run.metrics().loss) == [2.5]
    assert len(run.problems()) == 1
    assert "metrics.jsonl: 1 line" in run.problems()[0]
    assert "line 2" in run.problems()[0]


def test_the_last_line_of_a_step_holds(tmp_path) -> None:
    lines = ['{"step": 2, "loss": 9.0}', '{"step": 1, "loss": 4.0}', '{"step": 2, "loss": 3.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert list(Run.open(tmp_path).metrics().loss) == [4.0, 3.0]


@pytest.mark.parametrize("line", ["[1]", '"text"', '{"loss": 1}', '{"step": null}', "\x00\xff"])
def test_any_bad_line_is_survived(tmp_path, line) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line.encode("latin-1") + b'\n{"step": 7}\n')
    run = Run.open(tmp_path)
    assert list(run.metrics().step) == [7]
    assert len(run.problems()) == 1


def test_what_is_no_run_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory"):
        Run.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: a file"):
        Run.open(tmp_path / "file")
    simulate(tmp_path / "runs" / "first", steps=(0,))
    with pytest.raises(UserError, match=r"not a run directory.*did you mean .*first\?"):
        Run.open(tmp_path / "runs")
