"""Full, read-only, slow and vanished disks, and a clock set back, under real training processes."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.driver import assert_same_run, left_over
from tests.training.processes import finish, kill_when, make_home, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the run `whole`, which nothing disturbed."""
    home = make_home(tmp_path_factory.mktemp("disk"))
    finish(start(home, "whole"))
    return home


@pytest.fixture
def disk(home: Path) -> Iterator[Path]:
    """A disk of its own; skips where this user may not mount one."""
    (path := home / "disk").mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "nr_inodes=1000", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def error_of(output: str) -> str:
    """The one line of an error."""
    assert "Traceback" not in output, output
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize("limit", ["nr_inodes=60", "nr_inodes=120"])
def test_a_disk_that_is_full_ends_the_run_which_goes_on_with_more_room(
    home: Path, disk: Path, limit: str
) -> None:
    remount(disk, limit)
    line = error_of(finish(start(home, "disk/run"), code=2))
    assert "/disk/run" in line and "no space" in line.lower()
    remount(disk, "size=64m,nr_inodes=1000")
    finish(start(home, "disk/run"))
    assert_same_run(disk / "run", home / "whole")
    assert left_over(disk / "run") == []


def test_a_disk_that_is_read_only_refuses_the_run_which_goes_on_later(
    home: Path, disk: Path
) -> None:
    metrics = disk / "run" / "metrics.jsonl"
    kill_when(start(home, "disk/run"), signal.SIGTERM, metrics.exists)
    remount(disk, "ro")
    line = error_of(finish(start(home, "disk/run"), code=2))
    assert line.endswith("/disk/run: Read-only file system")
    remount(disk, "rw")
    finish(start(home, "disk/run"))
    assert_same_run(disk / "run", home / "whole")


def test_a_directory_that_vanishes_ends_the_run(home: Path) -> None:
    process = start(home, "gone", "--gin.TRAIN_STEPS=1000000")
    while not (home / "gone" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    shutil.rmtree(home / "gone", ignore_errors=True)
    assert "/gone" in error_of(finish(process, code=2))


def test_a_clock_set_back_changes_nothing(home: Path) -> None:
    metrics = home / "back" / "metrics.jsonl"
    kill_when(start(home, "back"), signal.SIGTERM, metrics.exists)
    finish(start(home, "back", module="tests.chaos.clock_back"))
    assert_same_run(home / "back", home / "whole")
    assert left_over(home / "back") == []


def test_a_slow_disk_changes_nothing(home: Path) -> None:
    finish(start(home, "slow", module="tests.chaos.slow_disk"))
    assert_same_run(home / "slow", home / "whole")
    assert left_over(home / "slow") == []
