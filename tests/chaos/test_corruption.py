"""Files of a run directory that are cut off, deleted, or have one bit flipped: never as if good."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.io import JsonLines
from jaxllm.run import data_identity, stored_config
from jaxllm.run.layout import Layout
from jaxllm.run.restore import SavedArrays, restore_params
from jaxllm.run.run import Run
from jaxllm.run.trajectory import TrajectoryStore
from tests.run.test_checkpoints import abstract, arrays, is_step, mesh, resume, same, save_run
from tests.run.test_data_identity import TOKENIZER, identity
from tests.run.test_trajectory import record

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def flips(path: Path, count: int, seed: int = 0) -> Iterator[int]:
    """Flips one bit of the file at a time, and yields its byte; leaves the file as it was."""
    content, where = path.read_bytes(), random.Random(f"{seed}{path.name}")
    for place in sorted(where.sample(range(len(content)), min(count, len(content)))):
        damaged = bytearray(content)
        damaged[place] ^= 1 << where.randrange(8)
        path.write_bytes(damaged)
        yield place
    path.write_bytes(content)


def unreadable(path: Path) -> Iterator[str]:
    """Cuts the file at several bytes, empties and deletes it; leaves it as it was."""
    content = path.read_bytes()
    for end in {len(content) // 2, 0}:
        path.write_bytes(content[:end])
        yield f"cut at byte {end} of {len(content)}"
    path.unlink()
    yield "deleted"
    path.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints."""
    run = tmp_path_factory.mktemp("saved")
    save_run(run, [1, 2])
    return run


def files(saved: Path) -> list[str]:
    newest = saved / "checkpoints" / "2"
    return sorted(str(p.relative_to(newest)) for p in newest.rglob("*") if p.is_file())


def damaged_each_way(path: Path) -> Iterator[str]:
    yield from (f"byte {place} flipped" for place in flips(path, 2))
    yield from unreadable(path)


def test_a_damaged_newest_checkpoint_is_never_trained_on(saved: Path, tmp_path: Path) -> None:
    """Each of its files, in each way: the exact arrays, or the checkpoint before, with a line."""
    on, used = mesh(1, 1), {1: 0, 2: 0}
    for name in files(saved):
        for number, how in enumerate(damaged_each_way(saved / "checkpoints" / "2" / name)):
            run = tmp_path / f"{name.replace('/', '-')}-{number}"
            shutil.copytree(saved, run)
            said: list[str] = []
            restored = resume(run, on, said)
            shutil.rmtree(run)
            step = restored.entry.step
            used[step] += 1
            assert is_step(restored, step, on), (name, how)
            assert step == 2 or (len(said) == 1 and "damaged and not used" in said[0]), (name, how)
    shutil.copytree(saved, tmp_path / "good")
    assert is_step(resume(tmp_path / "good", on), 2, on), "the damage was not undone"
    assert used[1] > 10


def test_damaged_arrays_are_never_scored_or_exported(saved: Path) -> None:
    model, _ = arrays(2, mesh(1, 1))
    found = 0
    for name in files(saved):
        for how in damaged_each_way(saved / "checkpoints" / "2" / name):
            try:
                assert same(restore_params(Layout(saved), 2, abstract(model)), model), (name, how)
                array = SavedArrays(Layout(saved).checkpoint(2) / "model").read("layers/query")
                assert same(array, model["layers"]["query"]), (name, how)
            except UserError as error:
                assert "damaged" in str(error), (name, how)
                found += 1
    assert found > 10


def test_a_damaged_older_checkpoint_is_no_matter(saved: Path, tmp_path: Path) -> None:
    """S3: a flip in any `_CHECKPOINT_METADATA` was a traceback at every start."""
    path = saved / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    for number, _ in enumerate(damaged_each_way(path)):
        shutil.copytree(saved, tmp_path / f"{number}")
        assert is_step(resume(tmp_path / f"{number}", mesh(1, 1)), 2, mesh(1, 1))


def lines_of(path: Path, count: int) -> list[dict[str, object]]:
    for step in range(count):
        JsonLines(path).append({"step": step, "loss": 1.5, "text": "é"})
    return JsonLines(path).read()[0]


def test_a_line_with_a_flipped_bit_is_reported_and_not_read(tmp_path: Path) -> None:
    """At most the name of the checksum changes without notice, and no value with it."""
    path = tmp_path / "metrics.jsonl"
    rows = lines_of(path, 4)
    for place in flips(path, 400):
        found, broken = JsonLines(path).read()
        values = [{key: row.get(key) for key in rows[0]} for row in found]
        assert all(value in rows for value in values), place
        assert broken or len(found) == 4


def test_damaged_records_are_reported_and_not_read(tmp_path: Path) -> None:
    import pandas as pd

    store, examples = TrajectoryStore(tmp_path), pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
    store.write(5, "task", [record(majority=0.6)], examples, checkpoint=12.5)
    good = store.read()
    for _ in flips(path := tmp_path / "trajectory" / "5" / "task.parquet", 300):
        found, problems = store.read_with_problems()
        assert problems or found.equals(good)
        assert not problems or (found.empty and not store.scored(5))
    for how in unreadable(path):
        assert store.read().empty and (how == "deleted" or store.read_with_problems()[1])
    for _ in flips(path.with_name("task.examples.parquet"), 300):
        try:
            assert store.read_examples(5, "task").equals(examples)
        except UserError as error:
            assert "damaged" in str(error)


@pytest.mark.parametrize("name", ["data.json", *TOKENIZER])
def test_damaged_data_and_tokenizer_are_refused(tmp_path: Path, name: str) -> None:
    data_identity.save(str(tmp_path), identity("a" * 16), TOKENIZER)
    good = data_identity.load(str(tmp_path))
    check: Callable[[], object] = lambda: data_identity.saved_tokenizer(str(tmp_path))
    for _ in flips(tmp_path / name, 200):
        try:
            check()
            loaded = data_identity.load(str(tmp_path))
            assert loaded == good
        except UserError as error:
            assert "is damaged" in str(error)


def test_a_damaged_config_is_refused_and_not_reported(tmp_path: Path) -> None:
    """But for the name of the checksum, without which the file is as any other."""
    run = Run.create(tmp_path)
    run.write_config("TRAIN_STEPS = 100\nTrainConfig.steps = %TRAIN_STEPS\n")
    good, path = run.settings(), tmp_path / "config.gin"
    assert run.settings()["TrainConfig.steps"] == 100
    for place in flips(path, 200):
        try:
            stored_config.parse(str(tmp_path))
            assert b"# CRC-32: " not in path.read_bytes() and run.settings() == good, place
        except UserError as error:
            assert "config.gin" in str(error)
            assert run.settings() in ({}, good)
            assert run.problems() == ((str(error),) if "is damaged" in str(error) else ())


def test_a_damaged_line_is_told_at_the_next_start(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    lines = (run / "checkpoints.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[1])
    (run / "checkpoints.jsonl").write_text(lines[0] + lines[1].replace("2.0", "3.0"))
    said: list[str] = []
    assert row["loss"] == 2.0 and resume(run, mesh(1, 1), said).entry.step == 1
    assert any("checkpoints.jsonl: 1 line not readable" in line for line in said), said
    assert Run(run).layout.damaged.exists(), "its checkpoint is moved away, not deleted"
