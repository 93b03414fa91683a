"""Signals to real training processes, at uniform times and at named points, until a run has ended.

Points are seen from outside, in the files of the run directory: no code of jaxllm knows of them.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd

from jaxllm.run.run import Run
from tests.training.processes import STEPS, environment, make_home
from tests.training.test_loop import exact
from tests.zygote import Process

TRAIN = "jaxllm.train"
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGSTOP")
SCHEDULED = [0, 20, 40, 60]
TEMPORARY = (".tmp", ".partial", "orbax-checkpoint-tmp", "writer.json", "__lock", ".writable")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def changed_at(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# What a point changes: it is reached when this is neither empty nor what it was at the start.
POINTS: dict[str, Callable[[Path], object]] = {
    "begin": lambda run: changed_at(run / "writer.json"),
    "compile": lambda run: changed_at(run / "config.gin"),
    "save": lambda run: sorted((run / "checkpoints").glob("*tmp*")),
    "manifest": lambda run: size(run / "checkpoints.jsonl"),
    "metrics": lambda run: size(run / "metrics.jsonl"),
    "record": lambda run: sorted((run / "trajectory").rglob("*.parquet")),
    "resume": lambda run: size(run / "restarts.jsonl"),
    "report": lambda run: text(run / "restarts.jsonl").count('"stopped": {'),
}


@dataclasses.dataclass
class Event:
    """What was done to a process, and how it ended."""

    number: str
    point: str
    hosts: int
    code: int | None = None  # None: it went on
    seconds: float = 0.0  # until the end


@dataclasses.dataclass
class Chaos:
    """A home of runs, of processes with two devices in all, and what has been done to them."""

    home: Path
    seed: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        make_home(self.home)
        self.events: list[Event] = []
        self.problems: list[str] = []
        self.typical = 5.0  # seconds from the start of a process to its end, adapted

    def start(self, name: str, hosts: int = 1, *flags: str, module: str = TRAIN) -> list[Process]:
        words = [f"--gin_file={self.home}/tiny.gin", f"--gin.MODEL_DIR={self.home}/{name}", *flags]
        variables = environment(f"{self.home}/xla-{2 // hosts}", 2 // hosts)
        log = self.home / f"{name}.log"
        return [
            Process([module, *words, *more], self.home, variables, log) for more in joined(hosts)
        ]

    def wait(self, processes: list[Process]) -> list[int]:
        return [process.wait() for process in processes]

    def disturb(self, name: str, number: str, point: str, hosts: int = 1) -> bool:
        """Start a process, send the signal at the point, and return whether it reached its end."""
        run = self.home / name
        before = POINTS[point](run) if point in POINTS else None
        of_another = changed_at(run / "writer.json")  # 0, or of a killed process
        due = time.monotonic() + self.random.uniform(0, self.typical)
        began = time.monotonic()
        processes = self.start(name, hosts)
        victim = self.random.choice(processes)
        event = Event(number, point, hosts)
        reached = False
        while not reached and victim.poll() is None:
            time.sleep(0.003)
            try:
                now = POINTS[point](run) if point in POINTS else time.monotonic() > due
            except OSError:  # a file was replaced between two looks
                continue
            reached = bool(now) and now != before
        if not reached:
            self.typical = time.monotonic() - began
            return self.check_end(name, event, self.wait(processes))
        # Its handlers are there before the lease, and after it no longer.
        unhandled = changed_at(run / "writer.json") in (0, of_another)
        sent = time.monotonic()
        signalled(victim, number)
        codes = self.wait(processes)
        event.code, event.seconds = codes[processes.index(victim)], time.monotonic() - sent
        self.events.append(event)
        return self.check_end(name, event, codes, unhandled)

    def check_end(self, name: str, event: Event, codes: list[int], unhandled: bool = False) -> bool:
        """Note an exit that is none of the promised ones; return whether the run is finished."""
        mine = {"SIGKILL": -9, "SIGINT": 130}.get(event.number, 0)
        early = {-getattr(signal, event.number)} if unhandled else set()
        allowed = {0, mine} | early
        if event.hosts > 1 and (event.number == "SIGKILL" or event.point == "begin"):
            allowed |= {1, 2, -6}  # of hosts that lose another one, and cannot agree to stop yet
        log = text(self.home / f"{name}.log")
        if set(codes) - allowed:
            self.problems.append(f"{event}: exit codes {codes}\n{log[-1500:]}")
        if "Traceback" in log and event.hosts == 1:
            self.problems.append(f"{event}: a traceback\n{log[-3000:]}")
        (self.home / f"{name}.log").unlink(missing_ok=True)
        return all(code == 0 for code in codes) and "report  " in log

    def table(self) -> str:
        """Events by signal and point, and the slowest end of each."""
        rows = pd.DataFrame([dataclasses.asdict(event) for event in self.events])
        if rows.empty:
            return "no events"
        counts = pd.crosstab([rows.hosts, rows.point], rows.number, margins=True)
        slowest = rows.groupby("number").seconds.max().round(1).to_dict()
        return f"{counts.to_string()}\nslowest end in seconds: {slowest}"


def joined(hosts: int) -> list[list[str]]:
    """The flags of each host."""
    from tests.hosts import free_port

    if hosts == 1:
        return [[]]
    address = [f"--coordinator_address=localhost:{free_port()}", "--heartbeat_timeout=30"]
    return [[*address, f"--num_processes={hosts}", f"--process_id={i}"] for i in range(hosts)]


def signalled(process: Process, number: str) -> None:
    process.send_signal(getattr(signal, number))
    if number == "SIGSTOP":
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)


def saved(run: Path) -> list[int]:
    return [entry.step for entry in Run(run).available()]


def assert_same_run(run: Path, whole: Path) -> None:
    """Parameters, optimizer state, metrics, manifest and records, bitwise."""
    assert saved(run) == saved(whole) == SCHEDULED
    metrics, expected = (Run(path).metrics_lines.read() for path in (run, whole))
    assert metrics[1] == []
    assert [exact(line) for line in metrics[0]] == [exact(line) for line in expected[0]]
    assert [line["step"] for line in metrics[0]] == [*range(7, STEPS, 7), STEPS]
    assert [manifest_line(e) for e in Run(run).entries() if e.step in SCHEDULED] == [
        manifest_line(e) for e in Run(whole).entries()
    ]
    for step in SCHEDULED:
        for item in ("model", "training"):
            ours = read_item(run / "checkpoints" / str(step) / item)
            theirs = expected_item(whole / "checkpoints" / str(step) / item)
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                np.testing.assert_array_equal(ours[name], value, f"step {step}, {name}")
        ours, theirs = (records(path, step) for path in (run, whole))
        assert len(theirs) > 0
        pd.testing.assert_frame_equal(ours, theirs)


def manifest_line(entry: object) -> dict[str, object]:
    """A line without what is measured anew."""
    anew = ("wall_time", "wall_seconds", "restarts", "kind")
    return {name: value for name, value in vars(entry).items() if name not in anew}


@functools.cache
def expected_item(path: Path) -> dict[str, np.ndarray]:
    return read_item(path)


def read_item(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an item, saved by any number of hosts."""
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restored = checkpointer.restore(path, ocp.args.PyTreeRestore(tree, as_numpy))
    return {
        jax.tree_util.keystr(key): np.asarray(leaf)
        for key, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }


def records(run: Path, step: int) -> pd.DataFrame:
    """The records of a step without what is measured anew: the run's name and seconds."""
    files = sorted((run / "trajectory" / str(step)).glob("*.parquet"))
    frames = [pd.read_parquet(file) for file in files]
    return pd.concat(frames).drop(columns=["run", "family", "seconds"]).reset_index(drop=True)


def left_over(run: Path) -> list[str]:
    """Files that a process should have removed."""
    names = [str(p.relative_to(run)) for p in run.rglob("*")]
    return [name for name in names if any(word in name for word in TEMPORARY)]
