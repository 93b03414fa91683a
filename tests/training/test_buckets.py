"""A run in a bucket that fails now and then, that stays away, or that is none of ours."""

import asyncio
import itertools
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orbax.checkpoint._src.serialization.tensorstore_utils as orbax_stores
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxllm import kvstore
from jaxllm.errors import UserError
from jaxllm.kvstore import ByteRange, KeyValueStore
from jaxllm.report.tensorboard import TensorBoardWriter
from jaxllm.run.checkpoint_schedule import CheckpointConfig
from jaxllm.run.records import Record
from jaxllm.run.run import Run
from jaxllm.training.loop import train
from tests.buckets import Proxy
from tests.training.helpers import FakeBatches, experiment, mesh, stages
from tests.training.test_loop import exact

SCHEDULE = CheckpointConfig(early=None, every_steps=4)
TRAFFIC = {*kvstore._COUNTERS.values()}
QUICKLY = {"max_retries": 5, "initial_delay": "5ms", "max_delay": "20ms"}


@pytest.fixture(autouse=True)
def impatient(bucket: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Failed requests are repeated after milliseconds."""
    monkeypatch.setattr(kvstore, "RETRIES", QUICKLY)
    monkeypatch.setitem(orbax_stores._BASE_TS_CONTEXT, "gcs_request_retries", QUICKLY)
    monkeypatch.setitem(orbax_stores._DEFAULT_OCDBT_TS_CONTEXT, "gcs_request_retries", QUICKLY)
    sleep = asyncio.sleep
    hurried = SimpleNamespace(sleep=lambda seconds: sleep(seconds / 1000))
    monkeypatch.setattr("gcsfs.retry.asyncio", hurried)
    monkeypatch.setattr("orbax.checkpoint._src.multihost.multihost._DEFAULT_BARRIER_TIMEOUT", 5)
    yield
    for thread in threading.enumerate():  # of saves that failed, which wait for each other
        if type(thread).__module__.startswith("orbax."):
            thread.join()


class Evaluator:
    """A task with a record at every scheduled checkpoint."""

    config = SimpleNamespace(due=lambda scheduled: scheduled)

    def __init__(self, model_dir: Any) -> None:
        self.definitions = {"task": None}
        self._store = Run(model_dir).trajectory

    def evaluate(
        self, params: Any, step: int, tokens: int, flops: float, checkpoint: float, **_: Any
    ) -> list[Record]:
        record = Record(
            run="r", family="r", params=1, step=step, tokens=tokens, flops=flops, task="task",
            domain="d", shots=0, metric="accuracy", value=step / 100, primary=True,
        )  # fmt: skip
        self._store.write(step, "task", [record], checkpoint=checkpoint)
        return [record]

    def missing(self, step: int, checkpoint: float | None) -> tuple[str, ...]:
        return () if self._store.scored(step, checkpoint) else ("task",)


def batches(before: Callable[[], None]) -> type[FakeBatches]:
    """FakeBatches that call `before` before each batch."""

    class Batches(FakeBatches):
        def __next__(self) -> Any:
            before()
            return super().__next__()

    return Batches


def go(model_dir: Any, before_batch: Callable[[], None] = lambda: None) -> None:
    e = experiment(model_dir, steps=8, log_every=1, checkpoints=SCHEDULE)
    only = stages(e, batches(before_batch), Evaluator(model_dir))
    train(e, mesh(), only, [TensorBoardWriter(model_dir)], "TRAIN_STEPS = 8")


def metrics(model_dir: Any) -> list[str]:
    """The lines of metrics.jsonl, without what may differ."""
    rows = Run(model_dir).metrics_lines.read()[0]
    return [exact({k: v for k, v in row.items() if k not in TRAFFIC}) for row in rows]


def assert_whole(there: str, expected: list[str]) -> None:
    """All of a run's files are in the bucket, none twice, and as on a disk."""
    run = Run(there)
    assert [entry.step for entry in run.available()] == [4, 8]
    lines = run.manifest_lines.read()[0]
    assert [line["step"] for line in lines] == [4, 8]
    assert metrics(there) == expected
    assert list(run.records().step) == [4, 8] and not run.problems()
    events = KeyValueStore(run.layout.tensorboard)
    with tempfile.TemporaryDirectory() as copy:
        for name, content in zip(events.names(), events.read(*events.names()), strict=True):
            (Path(copy) / name).write_bytes(content or b"")
        shown = EventAccumulator(copy).Reload().Scalars("train/loss")
    assert [event.step for event in shown] == list(range(1, 9))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The metrics of the run on a disk."""
    local = tmp_path_factory.mktemp("local")
    go(local)
    assert not TRAFFIC & Run(local).metrics_lines.read()[0][-1].keys()
    return metrics(local)


def test_faults_lose_and_double_nothing(bucket: Proxy, tmp_path: Path, expected: list[str]) -> None:
    there, count = f"gs://bucket/{tmp_path.name}", itertools.count()
    faults = {2: 503, 5: "reset", 8: 429, 11: 0.3}
    bucket.rule = lambda method, path: faults.get(next(count) % 13)
    go(there)
    bucket.rule = lambda method, path: None
    assert_whole(there, expected)


def test_a_bucket_that_stays_away_ends_the_run_which_then_goes_on(
    bucket: Proxy, tmp_path: Path, expected: list[str]
) -> None:
    there, batches = f"gs://bucket/{tmp_path.name}", itertools.count(1)

    def away() -> None:
        if next(batches) == 6:
            bucket.rule = lambda method, path: 503

    with pytest.raises(UserError, match="gs://bucket") as caught:
        go(there, away)
    assert "\n" not in str(caught.value)
    # It can be listed again, but no checkpoint be read: none is taken for damaged.
    bucket.rule = lambda method, path: 503 if "model" in path else None
    with pytest.raises(UserError, match=r"cannot read gs://bucket/.*/checkpoints/"):
        go(there)
    bucket.rule = lambda method, path: None
    go(there)
    assert_whole(there, expected)


def test_requests_are_counted(bucket: Proxy, tmp_path: Path) -> None:
    there = f"gs://bucket/{tmp_path.name}"
    files = KeyValueStore(f"{there}-data")
    before, sent = kvstore.traffic(), bucket.requests.copy()
    files.write({"a": bytes(500)})
    ranges = [ByteRange("a", 0, 100)] * 3
    bucket.rule = lambda method, path: 503 if sum(bucket.requests.values()) % 4 == 0 else None
    files.start_reads(ranges)()
    bucket.rule = lambda method, path: None
    after = kvstore.traffic()
    change = {name: after[name] - before.get(name, 0) for name in after}
    assert change["requests/read"] + change["requests/repeated"] == (bucket.requests - sent)["GET"]
    assert change["requests/written"] == (bucket.requests - sent)["POST"] == 1
    assert (change["bytes/read"], change["bytes/written"]) == (300, 500)

    e = experiment(there, steps=6, log_every=1, checkpoints=CheckpointConfig(early=None))
    train(e, mesh(), stages(e, batches(lambda: files.start_reads(ranges)() and None)))
    # Lines are a batch late: the last has no batch, and the first two what opens the run.
    for row in Run(there).metrics_lines.read()[0][2:-1]:
        assert {name: row[name] for name in TRAFFIC} == {
            "requests/read": 3, "bytes/read": 300,
            "requests/written": 0, "bytes/written": 0, "requests/repeated": 0,
        }  # fmt: skip
