"""Launchers against stand-ins for the commands that they call, which really run what they start."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxllm import suite as command
from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig
from jaxllm.run.checkpoint_schedule import CheckpointConfig
from jaxllm.suites import launchers
from jaxllm.suites.design import Member
from jaxllm.suites.jobs import Job
from jaxllm.suites.launchers import Launcher
from jaxllm.suites.suite import Progress, Suite
from jaxllm.suites.training import train
from jaxllm.training.config import TrainConfig
from jaxllm.training.experiment import Experiment
from jaxllm.training.learning_rate import ScheduleConfig
from tests.conftest import REPOSITORY

pytest.importorskip("submitit")

# A run: says that it began, then does as told; SIGTERM saves.
JOB = """
import pathlib, signal, sys, time
home, told = pathlib.Path(sys.argv[1]), sys.argv[2]
home.mkdir(parents=True, exist_ok=True)
def save(*_):
    (home / "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
with (home / "begun").open("a") as begun:
    begun.write(" ".join(sys.argv[2:]) + "\\n")
if told == "crash":
    sys.exit("error: Boom")
end = time.monotonic() + 60  # of a test that failed
while told == "wait" and not any((home / name).exists() for name in ("go", "saved")):
    time.sleep(0.05)
    if time.monotonic() > end:
        sys.exit(1)
(home / "finished").touch()
print("done")
"""
OPTIONS = {"slurm": ("time=60", "partition=tiny"), "xpk": ("cluster=c", "tpu-type=v6e-8", "spot")}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cluster whose commands are in the PATH."""
    folder, programs = tmp_path / "cluster", tmp_path / "bin"
    for made in (folder / "jobs", folder / "image" / ".venv" / "bin", programs):
        made.mkdir(parents=True)
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.setattr(launchers, "TRAIN", (str(tmp_path / "job.py"),))
    monkeypatch.setattr("jaxllm.suites.slurm.TRAIN", (str(tmp_path / "job.py"),))
    fake = Path(__file__).with_name("fake_clusters.py")
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol", "xpk"):
        executable(programs / name, f'exec {sys.executable} {fake} {name} "$@"')
    shutil.copytree(REPOSITORY / "tpu_scripts", folder / "image" / "tpu_scripts")
    python = folder / "image" / ".venv" / "bin" / "python"
    executable(python, f'shift 3\nexec {sys.executable} {tmp_path}/job.py "$@"')
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLUSTER", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def make(name: str) -> Launcher:
    launcher = command.launcher_of(name, OPTIONS[name])
    launcher.poll_seconds = 0.1
    return launcher


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


everywhere = pytest.mark.parametrize("name", OPTIONS)


@everywhere
def test_a_run_has_the_state_that_its_job_has(cluster: Path, name: str, tmp_path: Path) -> None:
    launcher, log = make(name), tmp_path / "log"
    assert launcher.state("r-good") == "none"
    for told in ("wait", "crash"):
        launcher.submit(f"r-{told}", [f"{tmp_path}/{told}", told, "a b"], log)
    wait_for((tmp_path / "wait" / "begun").exists)
    assert (tmp_path / "wait" / "begun").read_text() == "wait a b\n"
    assert launcher.state("r-wait") == "running"
    bad, good = ("none", "none") if name == "slurm" else ("failed", "ended")
    wait_for(lambda: launcher.state("r-crash") == bad)
    launcher.cancel("r-wait")
    wait_for((tmp_path / "wait" / "saved").exists)
    wait_for(lambda: launcher.state("r-wait") != "running")
    launcher.submit("r-crash", [f"{tmp_path}/crash", "finish"], log)
    wait_for(lambda: launcher.state("r-crash") == good)
    assert (tmp_path / "crash" / "finished").exists()
    if name == "slurm":
        assert "error: Boom\ndone\n" in log.read_text()
    else:
        assert "--tpu-type=v6e-8 --spot --workload=r-wait" in (cluster / "calls").read_text()


class TinySuite(Suite):
    """A suite whose runs are those of JOB."""

    def progress(self, member: Member) -> Progress:
        return Progress(0, 1, (self.layout.run(member.name) / "finished").exists())

    def flags(self, job: Job, due: object = None) -> list[str]:
        (member,) = job.members
        return [str(self.layout.run(member.name)), str(member.bindings["told"])]


def tiny_suite(folder: Path, **told: str) -> TinySuite:
    experiment = Experiment(
        ModelConfig(), DataConfig(), TrainConfig(steps=1), ScheduleConfig(), CheckpointConfig()
    )
    runs = [Member(name, {"told": text}, experiment) for name, text in told.items()]
    suite = TinySuite(str(folder / "suite"), runs, [])
    suite.layout.logs.mkdir(parents=True, exist_ok=True)
    return suite


@everywhere
def test_a_lost_suite_finds_its_runs_again(cluster: Path, name: str, tmp_path: Path) -> None:
    suite = tiny_suite(tmp_path, Going="wait", Bad="crash", next="finish")
    first = Job((suite.members[0],))
    make(name).submit(suite.job_name(first), suite.flags(first), tmp_path / "log")
    wait_for((tmp_path / "suite" / "Going" / "begun").exists)
    said: list[str] = []

    def log(line: str) -> None:
        said.append(line)
        if "goes on" in line:
            assert re.fullmatch("[a-z][a-z0-9-]{,39}", suite.job_name(first))
        if line == "next: finished":
            (tmp_path / "suite" / "Going" / "go").touch()

    assert train(suite, make(name), 2, 1, log) == ["Bad"]
    assert said[0] == "Going: goes on" and {"next: finished", "Going: finished"} < set(said)
    assert (tmp_path / "suite" / "Going" / "begun").read_text() == "wait\n"
    assert name == "xpk" or any(line.startswith("Bad: failed (error: Boom;") for line in said)


@pytest.mark.parametrize(
    ("here", "why", "cancelled"),
    [(True, UserError(), 1), (False, UserError(), 0), (False, KeyboardInterrupt(), 1)],
)
def test_runs_elsewhere_end_with_the_suite_only_by_ctrl_c(
    tmp_path: Path, here: bool, why: BaseException, cancelled: int
) -> None:
    stopped: list[str] = []
    answers = iter(["none"])

    class Elsewhere(launchers.Local):
        poll_seconds = 0

        def submit(self, name: str, flags: object, log: Path) -> None:
            pass

        def state(self, name: str) -> launchers.State:
            for _ in answers:
                return "none"
            raise why

        def cancel(self, name: str) -> None:
            stopped.append(name)

    launcher, suite = Elsewhere(), tiny_suite(tmp_path, a="wait")
    launcher.here = here
    with pytest.raises(type(why)):
        train(suite, launcher, 1, 1, print)
    assert len(stopped) == cancelled


DRIVER = """
import signal
import sys
from pathlib import Path
from jaxllm import cli, runtime
from jaxllm.suites import launchers
from jaxllm.suites.training import train
from tests.suites.test_clusters import tiny_suite
home = Path(sys.argv[1])
launchers.TRAIN = (str(home / "job.py"),)
signal.signal(signal.SIGINT, signal.default_int_handler)  # also of a test run in the background
def main(argv):
    with runtime.exit_by_signals():
        train(tiny_suite(home, a="wait", b="wait", c="finish"), launchers.Local(), 2, 1, print)
cli.run(main)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
)
def test_a_signal_to_the_suite_loses_nothing(cluster: Path, number: int, code: int) -> None:
    """To its whole group, as a terminal's Ctrl-C. Runs save and end, or a killed suite's go on."""
    home = cluster.parent
    command = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(home)], env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    suite = tiny_suite(home, a="wait", b="wait", c="finish")
    runs = [home / "suite" / name for name in "abc"]
    wait_for(lambda: all((run / "begun").exists() for run in runs[:2]))
    os.killpg(command.pid, number)
    said = command.communicate()[0]
    assert command.returncode == code, said
    killed = number == signal.SIGKILL
    assert [(run / "saved").exists() for run in runs] == [not killed, not killed, False]
    assert not (runs[2] / "begun").exists()
    if killed:
        for run in runs[:2]:
            (run / "go").touch()
    again: list[str] = []
    assert train(suite, launchers.Local(), 3, 1, again.append) == []
    begun = [(run / "begun").read_text().count("\n") for run in runs]
    assert begun == ([1, 1, 1] if killed else [2, 2, 1])


def test_a_question_is_asked_again(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launchers, "PAUSES", (0, 0))
    for name, failing in (("squeue", 2), ("xpk", 3)):
        executable(
            cluster.parent / "bin" / name,
            f"echo x >> {cluster}/{name}; [ $(wc -l < {cluster}/{name}) -gt {failing} ] && exit 0\n"
            "echo Socket timed out >&2; exit 1",
        )
    assert make("slurm").state("r-x") == "none"
    assert capsys.readouterr().err.count("squeue failed with 1: Socket timed out; again in 0") == 2
    with pytest.raises(UserError, match="xpk failed with 1: Socket timed out"):
        make("xpk").state("r-x")


class Scripted(launchers.Local):
    """A launcher whose answers on a run are given."""

    here, poll_seconds = False, 0

    def __init__(self, *states: launchers.State) -> None:
        super().__init__()
        self.states, self.submitted = iter(states), 0

    def submit(self, name: str, flags: object, log: Path) -> None:
        self.submitted += 1

    def state(self, name: str) -> launchers.State:
        return next(self.states)


def test_a_job_may_appear_late_or_never(tmp_path: Path) -> None:
    suite, said = tiny_suite(tmp_path, a="wait"), list[str]()
    none: list[launchers.State] = ["none"] * 9  # two of them before it is submitted
    assert train(suite, Scripted(*none[:4], "running", "failed"), 1, 1, said.append) == ["a"]
    assert train(suite, Scripted(*none), 1, 1, said.append) == ["a"]
    assert len(said) == 2 and "a: failed (no output; " in said[1]


def test_what_is_refused_once_is_submitted_again(tmp_path: Path) -> None:
    class Full(Scripted):
        def submit(self, name: str, flags: object, log: Path) -> None:
            self.submitted += 1
            if 1 < self.submitted < 4:
                raise UserError("sbatch refuses: QOSMaxSubmitJobPerUserLimit")

    first: list[launchers.State] = ["none"] * 3  # of both at the start, and of a before it begins
    rest: list[launchers.State] = ["running", "none", "failed", "none", "none", "failed"]
    launcher, said = Full(*first, *rest), list[str]()
    assert train(tiny_suite(tmp_path, a="x", b="x"), launcher, 1, 1, said.append) == ["a", "b"]
    assert launcher.submitted == 4 and sum("QOSMax" in line for line in said) == 2


def test_what_a_suite_beside_us_has_begun_is_not_begun_twice(tmp_path: Path) -> None:
    launcher = Scripted("none", "running", "running", "failed")
    train(tiny_suite(tmp_path, a="wait"), launcher, 1, 1, print)
    assert launcher.submitted == 0


def test_slurm_runs_a_job_again_whose_time_is_over(cluster: Path, tmp_path: Path) -> None:
    launcher, home = make("slurm"), tmp_path / "run"
    launcher.submit("r-long", [str(home), "wait"], tmp_path / "log")
    wait_for((home / "begun").exists)
    os.system("scancel --state=RUNNING --signal=USR2 --name=r-long")
    wait_for(lambda: launcher.state("r-long") == "none")
    assert (home / "finished").exists()
    assert (home / "saved").exists() and (home / "begun").read_text() == "wait\nwait\n"
    sbatches = [c for c in (cluster / "calls").read_text().splitlines() if c.startswith("sbatch")]
    assert len(sbatches) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("local", ("time=1",), "is not read with --launcher=local"),
        ("slurm", (), "needs --launcher_option=time=MINUTES"),
        ("slurm", ("time=1", "partition=nowhere"), "refuses r-x: .*Invalid partition name"),
        ("slurm", ("time=1", "partitoin=x"), "refuses r-x: .*partitoin"),
        ("xpk", ("cluster=nowhere",), "xpk failed with 1: .*nowhere was not found"),
    ],
)
def test_what_is_refused_is_one_line(
    cluster: Path, tmp_path: Path, name: str, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        command.launcher_of(name, options).submit("r-x", ["-"], tmp_path / "log")
    assert "\n" not in str(raised.value)


@everywhere
def test_a_missing_command_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs the command (squeue|xpk): No such file"):
        make(name).state("r-x")
    with pytest.raises(UserError, match=r"srun|xpk"):
        make(name).submit("r-x", ["-"], tmp_path / "log")
