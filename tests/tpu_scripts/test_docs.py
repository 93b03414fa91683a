"""The commands of docs/tpu.md are real ones: ours run dry, gcloud's pass its own linter."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.tpu_scripts.conftest import Machine

PAGE = (REPOSITORY / "docs" / "tpu.md").read_text()
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = BLOCKS.replace("\\\n", " ").splitlines()


def beginning(word: str) -> list[list[str]]:
    return [shlex.split(line) for line in COMMANDS if line.startswith(word)]


def test_scripts_take_the_flags_of_the_page(machine: Machine) -> None:
    calls = beginning("tpu_scripts/")
    assert len(calls) >= 6
    for script, *flags in calls:
        done = machine.run(Path(script).stem, "--dry_run", *flags)
        assert done.returncode == 0, done.stderr
        assert "gcloud compute tpus" in done.stdout


def test_gcloud_takes_the_flags_of_the_page(tmp_path: Path) -> None:
    if shutil.which("gcloud") is None:
        pytest.skip("Google's gcloud is not installed")
    file = tmp_path / "commands.json"
    calls = [shlex.join(words) for words in beginning("gcloud ")]
    file.write_text(json.dumps([{"command_string": call} for call in calls]))
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"],
        env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path / "config")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = {r["command_string"]: r["error_message"] for r in json.loads(done.stdout)}
    assert errors == dict.fromkeys(calls)


def test_the_page_names_the_images_that_are_asked_for(machine: Machine) -> None:
    rows = re.findall(r"^\| (\S+) \|.*\| `(.*?)` \|$", PAGE, re.MULTILINE)
    assert [chip for chip, _ in rows] == ["v2", "v3", "v4", "v5e", "v5p", "v6e"]
    for chip, image in rows:
        flags = ("--name=a", "--zone=b", f"--type={chip}-8", "--dry_run")
        assert f"--runtime-version={image} " in machine.run("create", *flags).stdout
