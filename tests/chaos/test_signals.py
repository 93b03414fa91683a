"""The short form of the chaos suite: each signal, at one of the named points, to one run."""

import itertools
import os
import signal
from collections.abc import Iterator

import pytest

from tests.chaos.driver import Chaos, assert_same_run, left_over

EVENTS = [
    ("SIGKILL", "compile"), ("SIGINT", "metrics"), ("SIGSTOP", "save"), ("SIGKILL", "manifest"),
    ("SIGHUP", "record"),
]  # fmt: skip


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    chaos = Chaos(tmp_path_factory.mktemp("chaos"))
    assert chaos.wait(chaos.start("whole")) == [0], (chaos.home / "whole.log").read_text()
    yield chaos
    chaos.close()


@pytest.mark.slow
def test_a_run_that_is_disturbed_is_the_run_that_never_was(chaos: Chaos) -> None:
    events = itertools.chain(EVENTS, itertools.repeat(("SIGKILL", "report")))
    while not chaos.disturb("disturbed", *next(events)):
        assert len(chaos.events) < 9, chaos.events
    assert len(chaos.events) >= 4, "it ended before it was disturbed"
    assert not chaos.problems, chaos.problems
    assert_same_run(chaos.home / "disturbed", chaos.home / "whole")
    assert left_over(chaos.home / "disturbed") == []


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_first_goes_on(chaos: Chaos) -> None:
    (first,) = chaos.start("one", 1, "--gin.TRAIN_STEPS=1000000")
    run = chaos.home / "one"
    while not (run / "writer.json").exists():
        assert chaos.zygotes[1].ask(poll=first) is None
    (second,) = chaos.start("one")
    assert chaos.wait([second]) == [2]
    log = (chaos.home / "one.log").read_text()
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"{run} is trained by process {first} of" in errors[0]
    for _ in range(2):  # the second Ctrl-C ends it at once, whatever it is doing
        os.kill(first, signal.SIGINT)
    assert chaos.wait([first]) == [130]
    assert "Traceback" not in (chaos.home / "one.log").read_text()
