"""A machine with a fake gcloud, whose hosts have a fake uv and a fake jaxllm.train."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = REPOSITORY / "tpu_scripts"

# Takes the steps up to TRAIN_STEPS, kept in the bucket as a checkpoint is. The first start on a
# TPU does what FIRST says; SIGTERM saves and ends it with 0, as jaxllm.train does.
TRAIN = """
[[ $* != -V ]] || { echo "Python $(cat .venv/version).1"; exit 0; }
[[ $1 != -c ]] || exit ${NO_BUCKET:-0}
bucket=$FAKE_CLOUD/bucket
trap 'echo "stopped at step $(cat $bucket/step) and saved"; exit 0' TERM
echo "$PWD $*" >>$bucket/starts
while [[ $PWD != *.0/jaxllm || $PWD == *-1.0/* ]]; do # only the first host takes steps
  [[ $(cat $bucket/step 2>/dev/null) != 10 ]] || exit 0
  sleep 0.2
done
begin=$(cat $bucket/step 2>/dev/null || echo 0)
echo "goes on from step $begin"
if [[ $begin == 0 ]]; then
  echo 5 >$bucket/step
  case $FIRST in
    hang) while true; do sleep 0.2; done ;;
    crash) echo Boom; exit 1 ;;
    stop) echo 'stopped at step 5 and saved: the same command goes on from there'; exit 0 ;;
  esac
elif [[ $FIRST == always_crash ]]; then
  echo Boom; exit 1
fi
echo 10 >$bucket/step
"""


@dataclass(frozen=True)
class Machine:
    """Where the scripts run.

    Attributes:
      scripts: tpu_scripts, in the tree that they copy.
      cloud: the folder of the fake cloud.
      environment: with the fakes in front of the PATH.
    """

    scripts: Path
    cloud: Path
    environment: dict[str, str]

    def run(self, script: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """Runs a script to its end."""
        command = [str(self.scripts / f"{script}.sh"), *flags]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=1800, check=False
        )

    def set_on_hosts(self, **variables: str) -> None:
        """What is set where a command runs on a host."""
        known = {"FAKE_CLOUD": str(self.cloud), "FIRST": ""}
        (self.cloud / "environment.json").write_text(json.dumps(known | variables))

    def states(self, *states: str) -> None:
        """What the queued resource will answer, one after the other; the last one stays."""
        (self.cloud / "states").write_text("\n".join(states))

    @property
    def calls(self) -> list[list[str]]:
        """The calls of gcloud, without `compute tpus`."""
        file = self.cloud / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line)[2:] for line in lines]

    def called(self, *verb: str) -> list[list[str]]:
        return [call for call in self.calls if call[: len(verb)] == list(verb)]

    def bucket(self, name: str) -> list[str]:
        """The lines of a file that outlives the TPU."""
        file = self.cloud / "bucket" / name
        return file.read_text().splitlines() if file.exists() else []


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


# The Python of the image is too old, and all that it can do is to install uv.
PYTHON = """
case $* in
  -V) echo Python 3.10.12 ;;
  '-m pip install --quiet --user uv')
    mkdir -p $HOME/.local/bin && cp $FAKE_CLOUD/uv $HOME/.local/bin/uv ;;
  *) exit 1 ;;
esac
"""

# Makes an environment whose Python is the file `train`.
UV = """
echo "$@" >>$FAKE_CLOUD/bucket/uv
if [[ $1 == venv ]]; then
  mkdir -p .venv/bin && echo $4 >.venv/version && cp $FAKE_CLOUD/train .venv/bin/python
fi
"""

PARTS = ("constraints", "evals", "gin", "jaxllm", "tpu_scripts")


def tree(folder: Path) -> Path:
    """What setup.sh copies, without git: scripts and constraints as they are, else stubs."""
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    for part in ("tpu_scripts", "constraints"):
        shutil.copytree(REPOSITORY / part, folder / part, dirs_exist_ok=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / file).touch()
    return folder


def kill_runs(folder: Path) -> None:
    """Ends what runs on the hosts of a fake cloud."""
    for pid in folder.glob("cloud/hosts/*/jaxllm/run.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def wait_for(condition: Callable[[], bool], seconds: float = 60, every: float = 0.05) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(every)


def fake_cloud(folder: Path, scripts: Path) -> Machine:
    """A machine in `folder` whose gcloud has no TPU yet."""
    cloud, programs = folder / "cloud", folder / "bin"
    for directory in (cloud / "bucket", cloud / "image" / "bin", programs):
        directory.mkdir(parents=True)
    fake = Path(__file__).with_name("fake_gcloud.py")
    executable(programs / "gcloud", f'#!/bin/bash\nexec {sys.executable} {fake} "$@"\n')
    executable(cloud / "image" / "bin" / "python3", f"#!/bin/bash\n{PYTHON}")
    executable(cloud / "uv", f"#!/bin/bash\n{UV}")
    executable(cloud / "train", f"#!/bin/bash\n{TRAIN}")
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FAKE_CLOUD": str(cloud),
        "HOME": str(folder),
    }
    made = Machine(scripts, cloud, environment)
    made.set_on_hosts()
    return made


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if shutil.which("bash") is None or shutil.which("setsid") is None:
        pytest.skip("needs bash and setsid")
    yield fake_cloud(tmp_path, tree(tmp_path / "tree") / "tpu_scripts")
    kill_runs(tmp_path)


@pytest.fixture
def keep_running(machine: Machine) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Keeps a run on two slices going, with `FIRST` for its first start."""

    def keep(first: str, *flags: str) -> subprocess.CompletedProcess[str]:
        machine.set_on_hosts(FIRST=first)
        return machine.run(
            "keep_running", "--name=llama", "--zone=us-central2-b", "--type=v4-16", "--slices=2",
            "--spot", "--poll_seconds=0.2", *flags, "--", "--gin_file=a b.gin",
        )  # fmt: skip

    return keep
