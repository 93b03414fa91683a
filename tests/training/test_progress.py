"""What the terminal shows, where the time goes, and what share of the hardware is used."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest

from jaxllm.run import times
from jaxllm.run.times import GoodputTimer, TimeBreakdown, duration
from jaxllm.sharding.chips import peak_flops, utilisation
from jaxllm.training import progress
from jaxllm.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = SimpleNamespace(seconds=0.0)
    for module in (progress, times):
        monkeypatch.setattr(module.time, "perf_counter", lambda: clock.seconds)
    return clock


def show(out: io.StringIO, now: Any, every: float) -> str:
    """100 steps of one second each, 50 of them done."""
    line = Progress(100, every, out)
    for step in range(51):
        now.seconds = float(step)
        line.update(step, 2.5, 1000.0)
    line.log("hello")
    line.close()
    return out.getvalue()


def test_not_a_terminal_gets_a_line_now_and_then(now: Any) -> None:
    lines = show(io.StringIO(), now, every=20).splitlines()
    assert lines == [
        "step 20/100 (20 %)  loss 2.500  1,000 tokens/s  1 min 20 s left",
        "step 40/100 (40 %)  loss 2.500  1,000 tokens/s  1 min 0 s left",
        "hello",
    ]


def test_a_terminal_has_one_line_that_is_renewed_and_gives_way(now: Any) -> None:
    text = show(Terminal(), now, every=20)
    assert "step 50/100 (50 %)  loss 2.500  1,000 tokens/s  50 s left" in text
    assert re.search(r"left\s*\r +\rhello\n$", text)
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (125, "2 min 5 s"), (3720, "1 h 2 min"), (3 * 86400 + 4 * 3600, "3 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_every_moment_is_of_one_phase(now: Any) -> None:
    clock = GoodputTimer()
    for phase, inside in (("checkpoint", 1.0), ("evaluation", 2.0)):
        now.seconds += 3.0  # what is before the first step is setup
        with clock.measure(phase):
            now.seconds += inside
    clock.begin_steps()
    with clock.measure("data"):
        now.seconds += 0.5
        with clock.measure("compile"):
            now.seconds += 4.0
    now.seconds += 10.0
    lap = clock.total()
    assert (lap.wall, lap.setup, lap.checkpoint, lap.evaluation) == (23.5, 6.0, 1.0, 2.0)
    assert (lap.compile, lap.data, lap.steps) == (4.0, 0.5, 10.5), "steps wait for data"
    now.seconds += 1.0
    assert clock.total() - lap == TimeBreakdown(wall=1.0)
    assert clock.total().wall == clock.run().wall == 24.5


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12),
     ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("cpu", None)],
)  # fmt: skip
def test_peaks_are_the_data_sheets(kind: str, peak: float | None) -> None:
    assert peak_flops(SimpleNamespace(device_kind=kind)) == peak  # type: ignore[arg-type]


def test_mfu_of_openllama_is_what_was_published() -> None:
    """2200 tokens/s per TPU v4 chip at 7B: about a third of the peak by 6ND."""
    assert utilisation(256 * 2200 * 6 * 6.738e9, 256, 275e12) == pytest.approx(0.323, abs=0.001)
    assert utilisation(1e9, 1, None) is None
