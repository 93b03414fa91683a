"""A suite that is trained in processes: one run of it fails, one is a branch; then it goes on."""

import json
import math
import re
import shutil
from pathlib import Path

import gin
import pytest

from jaxllm import analyze, suite
from jaxllm.errors import UserError
from jaxllm.run.run import Run
from jaxllm.suites import google_cloud, launchers
from jaxllm.suites.scale import settings
from jaxllm.training.sweep import rule_of
from tests import zygote
from tests.training.processes import make_home

SUITE = """
include 'suites/base.gin'
BATCH_SIZE = 8
TRAIN_STEPS = 20
ScheduleConfig.kind = 'constant'
CheckpointConfig.every_steps = 10
TrainConfig.log_every = 5
SuiteConfig.axes = {'SEED': (1, 2)}
SuiteConfig.cooldowns = (0.5,)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("suite"), SUITE)


def run(home: Path, *flags: str) -> int:
    gin.clear_config()
    return suite.main(["--gin_file", f"{home}/tiny.gin", f"--gin.SUITE_DIR={home}/runs", *flags])


@pytest.fixture(scope="module")
def said(home: Path) -> str:
    """What the suite printed, whose second run could not write its directory at first."""
    patch = pytest.MonkeyPatch()
    quick = zygote.NO_REPORT | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for name, value in quick.items():
        patch.setenv(name, value)
    patch.setattr(launchers, "begin", zygote.begin)
    assert google_cloud.begin is not zygote.begin  # as it would be if it were imported now
    (home / "runs").mkdir()
    (home / "runs" / "seed2").write_text("in the way")
    import contextlib
    import io

    log = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(log):
            assert run(home, "--jobs=2") == 1
        assert "%|" not in log.getvalue(), "a bar is for terminals"
    (home / "runs" / "seed2").unlink()
    assert run(home, "--jobs=2") == 0
    patch.undo()
    return out.getvalue()


def test_a_failed_run_stops_only_its_branches(home: Path, said: str) -> None:
    assert re.search(r"seed2: failed \(error: .*seed2.*; its output is in .*seed2\.log\)", said)
    assert "seed2_cooldown0.5: not begun, as seed2 failed" in said
    assert "seed1_cooldown0.5: finished" in said
    assert "2 of 4 runs are not finished: seed2, seed2_cooldown0.5" in said


def test_the_same_command_goes_on_with_the_others(home: Path, said: str) -> None:
    for name, steps in {"seed1": [0, 9, 10, 20], "seed2_cooldown0.5": [10]}.items():
        own = Run.open(home / "runs" / name)
        assert [entry.step for entry in own.available()] == steps
        assert own.restart_lines.read()[0] == [] or "stopped" in own.restart_lines.read()[0][0]
    branch = Run.open(home / "runs" / "seed1_cooldown0.5")
    assert branch.entries()[0].parent == f"{home}/runs/seed1@9"


def test_status_is_read_from_the_directories(
    home: Path, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(home / "runs" / "seed2", home / "moved")
    assert run(home, "--status") == 0
    shutil.move(home / "moved", home / "runs" / "seed2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == [
        "seed1", "seed1_cooldown0.5", "seed2", "seed2_cooldown0.5"
    ]  # fmt: skip
    assert lines[1].endswith("finished") and lines[3].endswith("not begun")


def test_a_suite_that_has_begun_may_gain_runs_but_not_change_them(home: Path, said: str) -> None:
    with pytest.raises(UserError, match=r"seed1 of .* began with SEED = '1'"):
        run(home, "--gin.SuiteConfig.axes={'SEED': {'seed1': 7}}")
    names = json.loads((home / "runs" / "suite.json").read_text())["runs"]
    assert set(names) == {"seed1", "seed1_cooldown0.5", "seed2", "seed2_cooldown0.5"}


def test_analyze_takes_it_whole(home: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    analyze.main([f"{home}/runs", "--format=csv"])
    assert str(home / "runs" / "report") in capsys.readouterr().out
    assert list((home / "runs" / "report").glob("*.csv"))


def test_a_sweep_becomes_the_law_of_another_suite(
    home: Path, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copies of a run that was trained here, whose losses are a parabola of their peak rates."""
    trained = Run.open(home / "runs" / "seed1")
    rows = trained.metrics_lines.read()[0]
    for rate in (2e-3, 4e-3, 8e-3, 1.6e-2):
        copy = Run(shutil.copytree(trained.path, tmp_path / f"sweep/{rate}"))
        peak = f"ScheduleConfig.peak_lr = {rate}"
        copy.layout.config.write_text(
            re.sub(r"(?m)^ScheduleConfig.peak_lr = .*$", peak, trained.config())
        )
        copy.layout.metrics.unlink()
        loss = rows[-1]["loss"] + math.log(rate / 5e-3) ** 2
        for row in rows:
            copy.metrics_lines.append(row | {"loss": loss if row is rows[-1] else 9.0})
    shutil.copytree(home / "runs" / "seed2_cooldown0.5", tmp_path / "sweep" / "unfinished")
    (tmp_path / "sweep" / "unfinished" / "checkpoints.jsonl").unlink()
    names = [path.name for path in (tmp_path / "sweep").iterdir()]
    (tmp_path / "sweep" / "suite.json").write_text(json.dumps({"runs": {n: {} for n in names}}))
    sweep = f"--gin.SuiteConfig.rule={tmp_path}/sweep"
    assert run(home, f"--gin.SUITE_DIR={tmp_path}/next", sweep, "--dry_run") == 0
    out = capsys.readouterr().out
    assert re.search(
        r"sweep \(own sweep, 4 of 5 runs\): learning rate 0.005, batch .*s$", out, re.M
    )
    assert re.search(r"parameters, 2,560 tokens: best of 0.002 to 0.016 is 0.005$", out, re.M)
    bindings = settings(1e5, 2e6, 16, rule_of(f"{tmp_path}/sweep"))
    assert bindings["ScheduleConfig.peak_lr"] == pytest.approx(5e-3, rel=0.01)


def test_without_a_directory_nothing_begins(home: Path) -> None:
    gin.clear_config()
    with pytest.raises(UserError, match="SUITE_DIR is not set"):
        suite.main([f"--gin_file={home}/tiny.gin"])
