"""Runs of a suite on TPU VMs, kept going by the scripts against a fake gcloud."""

from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.suite import launcher_of
from jaxllm.suites.launchers import Launcher
from tests.tpu_scripts.conftest import Machine, wait_for

FLAGS = ["--gin_file=a b.gin"]


@pytest.fixture
def here(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("jaxllm.suites.google_cloud.SCRIPTS", machine.scripts)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    machine.states("NONE", "ACTIVE")
    return machine


def make(*options: str) -> Launcher:
    return launcher_of("tpu_vm", ("zone=us-central2-b", "poll_seconds=0.2", *options))


def test_a_run_is_kept_going_and_its_tpu_given_back(here: Machine, tmp_path: Path) -> None:
    launcher = make("type=v4-16", "spot")
    assert launcher.state("r-x") == "none"
    launcher.submit("r-x", FLAGS, tmp_path / "log")
    assert launcher.state("r-x") == make().state("r-x") == "running"
    wait_for(lambda: launcher.state("r-x") == "none")
    assert here.bucket("step") == ["10"]
    assert here.bucket("starts")[0].endswith("--coordinator_address=auto --gin_file=a b.gin")
    assert "--spot" in here.called("queued-resources", "create")[0]
    assert len(here.called("queued-resources", "delete")) == 1


def test_a_lost_suite_can_still_end_its_run(here: Machine, tmp_path: Path) -> None:
    here.set_on_hosts(FIRST="hang")
    make("type=v4-16").submit("r-x", FLAGS, tmp_path / "log")
    wait_for(lambda: here.bucket("step") == ["5"])
    again = make("type=v4-16")
    with pytest.raises(BlockingIOError):
        again.submit("r-x", FLAGS, tmp_path / "log")
    again.cancel("r-x")
    wait_for(lambda: again.state("r-x") == "none")
    assert len(here.called("queued-resources", "delete")) == 1
    assert not list((here.cloud / "resources").iterdir())


def test_what_is_refused_is_one_line(
    here: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, message in (("type=h100",), "needs v2-N"), (("tpye=v4-8",), "--tpye=v4-8"):
        with pytest.raises(UserError, match=message):
            make(*options).submit("r-x", FLAGS, tmp_path / "log")
    assert here.calls == []
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs a checkout of jaxllm, and the command gcloud"):
        make()


def test_a_tpu_that_is_still_waited_for_is_given_back(here: Machine, tmp_path: Path) -> None:
    here.states("NONE", "WAITING_FOR_RESOURCES")
    launcher = make("type=v4-16")
    launcher.submit("r-x", FLAGS, tmp_path / "log")
    wait_for(lambda: here.called("queued-resources", "create") != [])
    launcher.cancel("r-x")
    assert len(here.called("queued-resources", "delete")) == 1
    assert not list((here.cloud / "resources").iterdir())
