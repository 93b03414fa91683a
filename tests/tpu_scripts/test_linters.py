"""What other tools say of the scripts: shellcheck, and Google's own gcloud without a network."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu_scripts.conftest import SCRIPTS, Machine
from tests.tpu_scripts.test_scripts import printed


def test_shellcheck_finds_nothing() -> None:
    program = shutil.which("shellcheck", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[dev]'")
    files = sorted(map(str, SCRIPTS.glob("*.sh")))
    done = subprocess.run([program, "-x", *files], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_gcloud_knows_every_command(machine: Machine, tmp_path: Path) -> None:
    """Its own linter parses them, flags and all; a flag that it does not know is an error."""
    if shutil.which("gcloud") is None:
        pytest.skip("Google's gcloud is not installed")
    train = ("--", "--gin_file=openllama.gin")
    commands = [
        *printed(machine, "keep_running", "--type=v5e-256", "--slices=2", "--spot",
                 "--project=mine", "--delete_when_finished", *train),
        *printed(machine, "create", "--type=v4-8", "--reserved", "--wait"),
        *printed(machine, "logs"),
    ]  # fmt: skip
    calls = [shlex.join(words) for words in commands if words[0] == "gcloud"]
    calls.append("gcloud compute tpus tpu-vm describe llama --format='value(state)' --zone=a")
    wrong = calls[0] + " --no-such-flag=1"
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": call} for call in [*calls, wrong]]))
    environment = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path / "config")}
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    results = json.loads(done.stdout)
    errors = {result["command_string"]: result["error_message"] for result in results}
    assert {call: errors[call] for call in calls} == dict.fromkeys(calls)
    assert "unrecognized arguments: --no-such-flag=1" in errors[wrong]
