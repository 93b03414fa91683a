"""The short form of the chaos suite: each signal, at one of the named points, to one run."""

import itertools
import signal
import time
from collections.abc import Callable

import pytest

from tests.chaos.driver import Chaos, assert_same_run, left_over

# SIGSTOP is the last: the process goes on to the end of the run.
EVENTS = [("SIGKILL", "compile"), ("SIGINT", "metrics"), ("SIGKILL", "manifest"),
          ("SIGHUP", "record"), ("SIGSTOP", "save")]  # fmt: skip


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    chaos = Chaos(tmp_path_factory.mktemp("chaos"))
    assert chaos.wait(chaos.start("whole")) == [0], (chaos.home / "whole.log").read_text()
    return chaos


@pytest.mark.slow
def test_a_run_that_is_disturbed_is_the_run_that_never_was(chaos: Chaos) -> None:
    events = itertools.chain(EVENTS, itertools.repeat(("SIGKILL", "report")))
    while not chaos.disturb("disturbed", *next(events)):
        assert len(chaos.events) < 9, chaos.events
    assert len(chaos.events) >= 3, "it ended before it was disturbed"
    assert not chaos.problems, chaos.problems
    assert_same_run(chaos.home / "disturbed", chaos.home / "whole")
    assert left_over(chaos.home / "disturbed") == []


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_first_goes_on(chaos: Chaos) -> None:
    (first,) = chaos.start("one", 1, "--gin.TRAIN_STEPS=1000000", module="tests.chaos.slow_save")
    run, log = chaos.home / "one", chaos.home / "one.log"

    def wait_for(ready: Callable[[], bool]) -> None:
        while not ready():
            assert first.poll() is None, log.read_text()
            time.sleep(0.01)

    wait_for((run / "metrics.jsonl").exists)
    (second,) = chaos.start("one")
    assert chaos.wait([second]) == [2]
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"{run} is trained by process {first.pid} of" in errors[0]
    first.send_signal(signal.SIGINT)
    wait_for(lambda: "once more ends at once" in log.read_text())
    first.send_signal(signal.SIGINT)  # ends it at once, whatever it is doing: a save of 30 s
    assert chaos.wait([first]) == [130]
    assert "Traceback" not in log.read_text() and "and saved" not in log.read_text()
