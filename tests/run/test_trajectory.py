"""The record store gives back what was written, whole or not at all."""

import dataclasses
import math
from collections.abc import Mapping

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.kvstore import KeyValueStore
from jaxllm.run.records import COLUMNS, Record
from jaxllm.run.run import Run
from jaxllm.run.trajectory import TrajectoryStore
from tests.buckets import Proxy


def record(step: int = 5, task: str = "addition", **fields) -> Record:
    given = {"metric": "accuracy", "value": 0.5, **fields}
    return Record(
        run="r", family="f", params=3, step=step, tokens=10 * step, flops=1e9 * step, task=task,
        domain="math", shots=0, **given,
    )  # fmt: skip


names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1,
    max_size=15,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@example(task=".", step=0, value=1.0, n=1, status="ok")
@example(task="a/b.examples", step=0, value=1.0, n=1, status="ok")
@example(task="..%2e", step=0, value=1.0, n=1, status="ok")
@given(
    task=names,
    step=st.integers(0, 10**12),
    value=st.floats(allow_nan=True),
    n=st.integers(0, 2**40),
    status=st.text(st.characters(codec="utf-8"), max_size=50),
)
def test_any_record_comes_back(tmp_path_factory, task, step, value, n, status) -> None:
    store = TrajectoryStore(tmp_path_factory.mktemp("run"))
    written = record(step, task, value=value, n=n, status=status)
    store.write(step, task, [written])
    assert store.steps() == (step,)
    assert store.scored(step) == {task}
    (row,) = store.read().to_dict("records")
    for name in COLUMNS:
        expected = getattr(written, name)
        same = row[name] == expected or (math.isnan(expected) and math.isnan(row[name]))
        assert same, name


def test_every_file_is_plain_parquet(tmp_path) -> None:
    """Other tools read the table without us: one file per checkpoint and task, tidy columns."""
    TrajectoryStore(tmp_path).write(5, "addition", [record(), record(metric="brier")])
    table = pq.read_table(tmp_path / "trajectory" / "5" / "addition.parquet")
    assert table.column_names == [f.name for f in dataclasses.fields(Record)]
    assert table.num_rows == 2


def test_records_from_before_a_column_was_written_have_its_default(tmp_path) -> None:
    store = TrajectoryStore(tmp_path)
    store.write(5, "addition", [record(majority=0.6, chance=0.5)])
    file = tmp_path / "trajectory" / "5" / "addition.parquet"
    older = pq.read_table(file).replace_schema_metadata(None)  # without a checksum
    pq.write_table(older.drop_columns(["majority"]), file)
    (found,) = store.read().itertuples()
    assert math.isnan(found.majority) and found.chance == 0.5
    pq.write_table(pq.read_table(file).drop_columns(["step"]), file)
    assert "no column step" in store.read_with_problems()[1][0]


def test_a_rerun_overwrites(tmp_path) -> None:
    store = TrajectoryStore(tmp_path)
    store.write(5, "addition", [record(), record(metric="brier")])
    store.write(5, "addition", [record(value=0.75)])
    assert list(store.read().value) == [0.75]


def full_disk_for(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Writing a file whose name ends so fails."""
    write = KeyValueStore.write

    def failing(self: KeyValueStore, files: Mapping[str, bytes]) -> None:
        if any(name.endswith(suffix) for name in files):
            raise UserError("no space left on device")
        write(self, files)

    monkeypatch.setattr(KeyValueStore, "write", failing)


def test_a_crash_leaves_the_earlier_record(tmp_path, monkeypatch) -> None:
    store = TrajectoryStore(tmp_path)
    store.write(5, "addition", [record(value=0.25)])
    full_disk_for(monkeypatch, ".examples.parquet")
    with pytest.raises(UserError, match="no space"):
        store.write(5, "addition", [record(value=0.75)], pd.DataFrame({"correct": [True]}))
    assert list(store.read().value) == [0.25]
    assert [p.name for p in (tmp_path / "trajectory" / "5").iterdir()] == ["addition.parquet"]


def test_records_come_after_their_examples(tmp_path, monkeypatch) -> None:
    """A kill between the two files leaves the task to be scored again, not without examples."""
    store = TrajectoryStore(tmp_path)
    full_disk_for(monkeypatch, "addition.parquet")
    with pytest.raises(UserError):
        store.write(5, "addition", [record()], pd.DataFrame({"correct": [True]}))
    assert len(store.read_examples(5, "addition")) == 1
    assert store.scored(5) == set()


def test_a_checkpoint_in_a_bucket_becomes_one_file(bucket: Proxy, tmp_path) -> None:
    store = TrajectoryStore(f"gs://bucket/{tmp_path.name}")
    tasks = [f"suite/task {number}" for number in range(20)]
    for step in (5, 60):
        for task in tasks:
            store.write(step, task, [record(step, task)], pd.DataFrame({"correct": [True]}))
    before = store.read()
    store.compact(5)
    pd.testing.assert_frame_equal(store.read(), before)
    assert store.steps() == (5, 60) and store.scored(5) == store.scored(60) == set(tasks)
    assert len(store.read_examples(5, tasks[3])) == 1
    # A task that is scored again replaces its records, and may be moved into the file, too.
    store.write(5, tasks[0], [record(5, tasks[0], value=0.125)])
    for _ in range(2):
        row = store.read().query("step == 5 and task == @tasks[0]")
        assert list(row.value) == [0.125] and len(store.read()) == 40
        store.compact(5)
    store.compact(60)
    requests = bucket.requests.total()
    TrajectoryStore(store.path.parent).read()
    assert bucket.requests.total() - requests <= 4  # a list and two files


def test_examples_come_back(tmp_path) -> None:
    store = TrajectoryStore(tmp_path)
    examples = pd.DataFrame({"id": ["a", "b"], "log_likelihoods": [[-1.5, -2.0], [-0.5]]})
    store.write(5, "suite/addition", [record(task="suite/addition")], examples)
    read = store.read_examples(5, "suite/addition")
    assert list(read.id) == ["a", "b"]
    assert [list(row) for row in read.log_likelihoods] == [[-1.5, -2.0], [-0.5]]
    assert len(store.read()) == 1
    with pytest.raises(FileNotFoundError):
        store.read_examples(5, "addition")


def test_an_unreadable_file_is_named_and_the_rest_is_read(tmp_path) -> None:
    store = TrajectoryStore(tmp_path)
    store.write(5, "addition", [record()])
    store.write(5, "broken", [record(task="broken")])
    (tmp_path / "trajectory" / "5" / "broken.parquet").write_bytes(b"PAR1 no")
    frame, problems = store.read_with_problems()
    assert list(frame.task) == ["addition"]
    assert len(problems) == 1
    assert "broken.parquet" in problems[0]


def test_an_empty_store_has_the_columns(tmp_path) -> None:
    assert tuple(TrajectoryStore(tmp_path).read().columns) == COLUMNS


def test_records_and_checkpoints_in_a_bucket_are_moved_away(bucket: Proxy, tmp_path) -> None:
    run = Run(f"gs://bucket/{tmp_path.name}")
    for step in (5, 60, 70):
        for task in ("a", "b"):
            records = [record(step, task)]
            run.trajectory.write(step, task, records, pd.DataFrame({"correct": [True]}))
    run.trajectory.compact(60)
    files = KeyValueStore(run.path)
    files.write({f"checkpoints/60/{name}": b"" for name in ("commit_success.txt", "model/x")})
    run._forget_after(5)
    assert run.trajectory.steps() == (5,)
    assert files.names("checkpoints") == []
    assert "damaged_checkpoints/60/model/x" in files.names()
    moved = {name.split("/", 2)[2] for name in files.names("abandoned_records/")}
    assert {"60.parquet", "60/a.examples.parquet", "70/b.parquet"} <= moved


def test_records_of_an_abandoned_checkpoint_are_known(tmp_path) -> None:
    """One scores a checkpoint while the run is rolled back and saves another at the same step."""
    run = Run(tmp_path)
    run.manifest_lines.append({"step": 5, "wall_time": 200.5})
    run.trajectory.write(5, "late", [record(task="late")], checkpoint=100.25)
    run.trajectory.write(5, "addition", [record()], checkpoint=200.5)
    run.trajectory.write(5, "imported", [record(task="imported")])
    assert set(run.records().task) == {"addition", "imported"}
    assert "late.parquet: of a checkpoint that the run has abandoned" in run.problems()[0]
    assert run.trajectory.scored(5, 200.5) == {"addition", "imported"}
