"""One run on one, two and four hosts, which are stopped and killed: it ends as on one, bitwise."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import pytest

from jaxllm.run.run import Run
from jaxllm.training.preemption import Preemption
from tests.hosts import finish, start_hosts, wait_for
from tests.training.processes import make_home, steps_logged
from tests.zygote import Process

STEPS = 60
CONFIG = """
EVAL_TASKS = ()
MeshConfig.data = 2
MeshConfig.fsdp = 2
"""
HEARTBEAT = 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("hosts"), CONFIG)


def start(
    home: Path,
    name: str,
    count: int,
    *flags: str,
    last: Sequence[str] = (),
    missing: Sequence[int] = (),
) -> list[Process]:
    return start_hosts(
        home, count, 4, "train", f"--gin_file={home}/tiny.gin", f"--gin.MODEL_DIR={home}/{name}",
        f"--heartbeat_timeout={HEARTBEAT}", *flags, last=last, missing=missing,
    )  # fmt: skip


def stop_one(hosts: list[Process], run: Path, after: int) -> int:
    """SIGTERM to the last host at a step after `after`; returns the step that all have saved."""
    wait_for(hosts, lambda: steps_logged(run) > after)
    hosts[-1].send_signal(signal.SIGTERM)
    finish(hosts)
    saved = Run(run).available()[-1].step
    assert after < saved < STEPS
    return saved


def ended_by_another(hosts: list[Process]) -> list[str]:
    """The outputs of hosts that end soon, and not well, because another one has."""
    began = time.monotonic()
    outputs = [host.communicate(timeout=120)[0] for host in hosts]
    assert time.monotonic() - began < HEARTBEAT + 30  # on a busy machine
    assert all(host.returncode != 0 for host in hosts), outputs
    return outputs


def losses(run: Path) -> list[tuple[int, float, float]]:
    lines = Run(run).metrics_lines.read()[0]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.slow
def test_a_run_wanders_over_two_one_four_and_two_hosts_and_is_bitwise_the_same(home: Path) -> None:
    finish(start(home, "whole", 1))
    run = home / "wandering"

    first = stop_one(start(home, "wandering", 2), run, 0)
    hosts = start(home, "wandering", 1)
    second = stop_one(hosts, run, first)

    hosts = start(home, "wandering", 4)
    wait_for(hosts, lambda: steps_logged(run) > second)
    hosts[2].kill()
    for index, output in enumerate(ended_by_another(hosts)):
        # its own last word is that of a lost connection, or JAX's when no heartbeat came
        known = "another host failed first" in output or "another task died" in output
        assert index == 2 or known, output

    resumed = f"resuming {run} at step {Run(run).available()[-1].step}"
    assert all(resumed in output for output in finish(start(home, "wandering", 2)))
    assert losses(run) == losses(home / "whole")
    lines = Run(run).metrics_lines.read()[0]
    assert lines[-1]["restarts"] == 3


@pytest.mark.slow
def test_a_signal_after_the_last_save_makes_no_host_wait(home: Path) -> None:
    """JAX's service of preemption would hold both for three minutes."""
    hosts, stops = start(home, "ended", 2), home / "ended" / "restarts.jsonl"
    wait_for(hosts, lambda: stops.exists() and '"stopped": {' in stops.read_text())
    hosts[0].send_signal(signal.SIGTERM)
    outputs = [host.communicate(timeout=120)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    assert Run(home / "ended").available()[-1].step == STEPS


def test_a_signal_after_that_ends_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    try:
        with Preemption() as preemption:
            preemption.release()
        assert signal.getsignal(signal.SIGTERM) != before
        signal.raise_signal(signal.SIGTERM)
        assert preemption.requested()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_a_host_that_does_not_come_is_named(home: Path) -> None:
    outputs = finish(start(home, "waiting", 4, "--initialization_timeout=15", missing=(1, 3)), 2)
    for process, output in zip((0, 2), outputs, strict=True):
        error = output.splitlines()[-1]
        assert error.startswith(f"error: process {process} of 4: process 1, 3 did not come to")
    assert not (home / "waiting").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "difference"),
    [
        ("--gin.DataConfig.seed=5", "settings: DataConfig.seed = 5, not "),
        ("--gin.TRAIN_STEPS=7", "settings: TRAIN_STEPS = 7, not TRAIN_STEPS = 60"),
    ],
)
def test_hosts_with_other_settings_are_refused(home: Path, flag: str, difference: str) -> None:
    hosts = start(home, "other_settings", 2, last=[flag])
    for output in finish(hosts, code=2):
        assert f"error: host 1 does not agree with host 0 on the {difference}" in output
    assert not (home / "other_settings").exists()


@pytest.mark.slow
def test_hosts_with_other_data_are_refused_before_they_train(home: Path, tmp_path: Path) -> None:
    """The same settings, but a corpus that one of them sees otherwise."""
    relative = "DataConfig.corpus_dir = 'corpus'\nDataConfig.cache_dir = 'cache'\n"
    for host in ("0", "1"):
        make_home(tmp_path / host, CONFIG + relative)
    words = tmp_path / "1" / "corpus" / "words" / "train.txt"
    words.write_text(words.read_text() + " and more")
    first = tmp_path / "0"
    hosts = start_hosts(
        first, 2, 4, "train", f"--gin_file={first}/tiny.gin", f"--gin.MODEL_DIR={first}/run",
        last_home=tmp_path / "1",
    )  # fmt: skip
    for output in finish(hosts, code=2):
        assert "error: host 1 does not agree with host 0 on the training sequences: " in output
    assert not (first / "run" / "data.json").exists()


@pytest.mark.slow
def test_a_host_that_stands_still_shows_where_the_others_wait(home: Path) -> None:
    """The watchdog of the other one shows its stacks and, asked to, ends it."""
    run = home / "still"
    hosts = start(
        home, "still", 2, "--gin.TRAIN_STEPS=100000", "--heartbeat_timeout=300",
        "--gin.TrainConfig.watchdog_minutes=0.3", "--gin.TrainConfig.exit_on_hang=True",
    )  # fmt: skip
    wait_for(hosts, lambda: steps_logged(run) > 0)
    hosts[1].send_signal(signal.SIGSTOP)
    try:
        output = hosts[0].communicate(timeout=120)[0]
    finally:
        hosts[1].kill()
        hosts[1].communicate()
    assert hosts[0].returncode == 1
    assert "Timeout" in output and "jaxllm/training/loop.py" in output


@pytest.mark.slow
def test_two_hosts_roll_back_and_pass_over_steps_as_one(home: Path) -> None:
    """A rate that makes the loss infinite from the second update on, and a stretch by hand."""
    ill = [
        "--gin.ScheduleConfig.peak_lr=1e30",
        "--gin.TrainConfig.rollback={'times': 1, 'margin': 2}",
    ]  # fmt: skip
    ends = []
    for count in (1, 2):
        outputs = finish(start(home, f"ill{count}", count, *ill), code=2)
        for output in outputs:
            assert "have not helped: it is not the data alone" in output
        ends.append((Run(home / f"ill{count}").rollbacks(), losses(home / f"ill{count}")))
        finish(start(home, f"by_hand{count}", count, "--skip_steps=20:25"))
    assert ends[0] == ends[1] and len(ends[0][0]) == 1
    assert len(Run(home / "by_hand2").rollbacks()) == 1
    assert losses(home / "by_hand1") == losses(home / "by_hand2")
    assert Run(home / "by_hand2").metrics_lines.read()[0][-1]["skipped_steps"] == 6
