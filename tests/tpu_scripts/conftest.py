"""A machine with a fake gcloud, a fake uv, and a fake jaxllm.train that takes steps."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = REPOSITORY / "tpu_scripts"

# Takes the steps up to TRAIN_STEPS, kept in the bucket as a checkpoint is. The first start on a
# TPU does what FIRST says; SIGTERM saves and ends it with 0, as jaxllm.train does.
TRAIN = """
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
      scripts: tpu_scripts, in a checkout that has them committed.
      cloud: the folder of the fake cloud.
      environment: with the fakes in front of the PATH.
    """

    scripts: Path
    cloud: Path
    environment: dict[str, str]

    def run(self, script: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a script to its end."""
        command = [str(self.scripts / f"{script}.sh"), *flags]
        environment = self.environment | variables
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

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


def checkout(folder: Path) -> Path:
    """A repository with the scripts and the constraints, committed as they are now."""
    for part in ("tpu_scripts", "constraints"):
        shutil.copytree(REPOSITORY / part, folder / part)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if shutil.which("bash") is None or shutil.which("setsid") is None:
        pytest.skip("needs bash and setsid")
    cloud, programs = tmp_path / "cloud", tmp_path / "bin"
    (cloud / "bucket").mkdir(parents=True)
    programs.mkdir()
    fake = Path(__file__).with_name("fake_gcloud.py")
    executable(programs / "gcloud", f'#!/bin/bash\nexec {sys.executable} {fake} "$@"\n')
    executable(
        programs / "uv",
        '#!/bin/bash\necho "$@" >>$FAKE_CLOUD/bucket/uv\n'
        "mkdir -p .venv/bin && cp $FAKE_CLOUD/train .venv/bin/python\n",
    )
    executable(cloud / "train", f"#!/bin/bash\n{TRAIN}")
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FAKE_CLOUD": str(cloud),
        "HOME": str(tmp_path),
        "FIRST": "",
    }
    yield Machine(checkout(tmp_path / "checkout") / "tpu_scripts", cloud, environment)
    for pid in cloud.glob("hosts/*/jaxllm/run.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture
def keep_running(machine: Machine) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Keeps a run on two slices going, with `FIRST` for its first start."""

    def keep(first: str, *flags: str) -> subprocess.CompletedProcess[str]:
        return machine.run(
            "keep_running", "--name=llama", "--zone=us-central2-b", "--type=v4-16", "--slices=2",
            "--spot", "--poll_seconds=0.2", *flags, "--", "--gin_file=a b.gin",
            FIRST=first,
        )  # fmt: skip

    return keep
