"""The record store gives back what was written, whole or not at all."""

import dataclasses
import math
import os

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxllm.run.records import COLUMNS, Record
from jaxllm.run.trajectory import TrajectoryStore


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
    assert store.has(step, task)
    assert store.steps() == (step,)
    assert store.tasks(step) == (task,)
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


def test_a_rerun_overwrites(tmp_path) -> None:
    store = TrajectoryStore(tmp_path)
    store.write(5, "addition", [record(), record(metric="brier")])
    store.write(5, "addition", [record(value=0.75)])
    assert list(store.read().value) == [0.75]


def test_a_crash_leaves_the_earlier_record(tmp_path, monkeypatch) -> None:
    store = TrajectoryStore(tmp_path)
    store.write(5, "addition", [record(value=0.25)])

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        store.write(5, "addition", [record(value=0.75)], pd.DataFrame({"correct": [True]}))
    assert list(store.read().value) == [0.25]
    assert [p.name for p in (tmp_path / "trajectory" / "5").iterdir()] == ["addition.parquet"]


def test_records_come_after_their_examples(tmp_path, monkeypatch) -> None:
    """A kill between the two files leaves the task to be scored again, not without examples."""
    store, replaced = TrajectoryStore(tmp_path), []
    rename = os.replace

    def killed_at_the_second(source: str, target: str) -> None:
        if replaced:
            raise KeyboardInterrupt
        replaced.append(str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        store.write(5, "addition", [record()], pd.DataFrame({"correct": [True]}))
    assert not store.has(5, "addition")
    assert store.tasks(5) == ()


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


def test_a_record_in_the_wrong_place_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="addition@6"):
        TrajectoryStore(tmp_path).write(5, "addition", [record(step=6)])


def test_an_empty_store_has_the_columns(tmp_path) -> None:
    assert tuple(TrajectoryStore(tmp_path).read().columns) == COLUMNS
