"""Saved and restored: exactly, strictly, onto other meshes, and around damage."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.errors import UserError
from jaxllm.run import checkpoints
from jaxllm.run import run as run_module
from jaxllm.run.checkpoint_schedule import CheckpointConfig
from jaxllm.run.layout import Layout
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.restore import restore_params
from jaxllm.run.run import Run

# A restore that fails half-way leaves TensorStore futures behind that nobody awaits.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Moments(NamedTuple):
    """Stands for an Optax state: named tuples and empty nodes."""

    count: Any
    mu: Any
    nothing: Any = ()


def mesh(*shape: int) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, ("data", "fsdp"), devices=jax.devices()[: int(np.prod(shape))])


def shardings(on: jax.sharding.Mesh) -> tuple[NamedSharding, NamedSharding]:
    return NamedSharding(on, PartitionSpec(None, "fsdp")), NamedSharding(on, PartitionSpec())


def arrays(step: int, on: jax.sharding.Mesh) -> tuple[dict, dict]:
    """A model item and a training item, with values that differ by step."""
    cut, whole = shardings(on)
    random = np.random.Generator(np.random.PCG64(step))
    make = lambda shape, s: jax.device_put(random.normal(size=shape).astype(np.float32), s)
    model = {"layers": {"query": make((2, 8, 4), cut), "norm": make((2, 8), whole)}}
    moments = Moments(jax.device_put(jnp.int32(step), whole), jax.tree.map(jnp.square, model))
    return model, {"step": jax.device_put(jnp.int32(step), whole), "opt_state": (moments, ())}


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def entry(step: int, kind: str = "scheduled") -> ManifestEntry:
    return ManifestEntry(
        step=step, tokens=step * 32, flops=float(step), learning_rate=1e-3, loss=2.0,
        data_position=step * 4, dtype="float32", wall_time=0.0, wall_seconds=float(step),
        code_version="test", restarts=0, kind=kind,
    )  # fmt: skip


def save_run(
    model_dir: Path,
    steps: list[int],
    config: CheckpointConfig | None = None,
    kind: str = "scheduled",
) -> None:
    writer = Run(model_dir).checkpoint_writer(config or CheckpointConfig())
    for step in steps:
        model, training = arrays(step, mesh(1, 2))
        writer.save(entry(step, kind), model, training, {"sums": {"code": step + 0.1}})
    writer.close()


def resume(model_dir: Path, on: jax.sharding.Mesh, said: list[str] | None = None) -> Any:
    """The newest checkpoint, as a trainer finds it."""
    run, (params, training) = Run(model_dir), map(abstract, arrays(0, on))
    resumed = run.resume(params, training, report=(said if said is not None else []).append)
    run.checkpoint_writer(CheckpointConfig()).close()
    return resumed.checkpoint if resumed else None


def same(a: Any, b: Any) -> bool:
    equal = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return jax.tree.all(equal)


def is_step(restored: Any, step: int, on: jax.sharding.Mesh) -> bool:
    model, training = arrays(step, on)
    return restored.entry.step == step and same(
        (restored.params, restored.training), (model, training)
    )


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (4, 2), (1, 4)])
def test_restores_exactly_onto_another_mesh(tmp_path: Path, shape: tuple[int, int]) -> None:
    save_run(tmp_path, [3, 5])
    on = mesh(*shape)
    restored = resume(tmp_path, on)
    assert is_step(restored, 5, on)
    assert restored.custom_metadata["sums"] == {"code": 5.1}
    assert restored.entry == entry(5)
    assert restored.params["layers"]["query"].sharding == shardings(on)[0]
    model, _ = arrays(3, on)
    assert same(restore_params(Layout(tmp_path), 3, abstract(model)), model)


def test_a_new_run_has_nothing_to_resume(tmp_path: Path) -> None:
    assert resume(tmp_path / "new", mesh(1, 1)) is None


def change(tree: dict, how: Callable[[dict], Any]) -> dict:
    copy = {"layers": dict(tree["layers"])}
    how(copy["layers"])
    return copy


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            lambda t: t.update(bias=t["norm"]),
            r"parameter layers/bias is missing in it, and float32 \[\d",
        ),
        (lambda t: t.pop("norm"), r"parameter layers/norm is float32 \[.*\] in it, and missing"),
        (
            lambda t: t.update(query=jax.ShapeDtypeStruct((2, 8, 6), jnp.float32)),
            r"parameter layers/query is float32 \[2, 8, 4\] in it, and float32 \[2, 8, 6\]",
        ),
        (
            lambda t: t.update(query=jax.ShapeDtypeStruct((2, 8, 4), jnp.bfloat16)),
            r"parameter layers/query is float32 \[2, 8, 4\] in it, and bfloat16 \[2, 8, 4\]",
        ),
    ],
)
def test_another_architecture_is_an_error_that_names_the_parameter(
    tmp_path: Path, how: Callable[[dict], Any], message: str
) -> None:
    save_run(tmp_path, [1])
    model, training = map(abstract, arrays(0, mesh(1, 1)))
    with pytest.raises(UserError, match=message):
        Run(tmp_path).resume(change(model, how), training)
    with pytest.raises(UserError, match=message):
        restore_params(Layout(tmp_path), 1, change(model, how))
    assert [e.step for e in Run(tmp_path).available()] == [1], "nothing may be thrown away"


def test_another_optimizer_is_an_error_that_names_the_array(tmp_path: Path) -> None:
    save_run(tmp_path, [1])
    model, training = map(abstract, arrays(0, mesh(1, 1)))
    with pytest.raises(UserError, match="optimizer state opt_state/0/count"):
        Run(tmp_path).resume(model, {"step": training["step"], "opt_state": ()})


def test_damage_to_any_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Each file of the newest checkpoint in turn is deleted, emptied or cut in half."""
    whole = tmp_path / "whole"
    save_run(whole, [1, 2])
    newest = whole / "checkpoints" / "2"
    files = sorted(p.relative_to(whole) for p in newest.rglob("*") if p.is_file())
    assert len(files) > 10
    outcomes = set()
    for file in files:
        for damage in ("delete", "empty", "halve"):
            run = tmp_path / "damaged"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(whole, run)
            if damage == "delete":
                (run / file).unlink()
            else:
                os.truncate(
                    run / file, 0 if damage == "empty" else (run / file).stat().st_size // 2
                )
            said: list[str] = []
            restored = resume(run, mesh(1, 1), said)
            step = restored.entry.step
            assert is_step(restored, step, mesh(1, 1)), f"{damage} {file}: wrong values"
            assert len(said) == (1 if step == 1 else 0), f"{damage} {file}"
            outcomes.add(step)
            if step == 1:
                assert "checkpoints/2 is damaged" in said[0]
                assert (run / "damaged_checkpoints" / "2").is_dir()
                assert [e.step for e in Run(run).entries()] == [1]
    assert outcomes == {1, 2}


def test_a_damaged_step_can_be_saved_again(tmp_path: Path) -> None:
    save_run(tmp_path, [1, 2])
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "model")
    assert resume(tmp_path, mesh(1, 2)).entry.step == 1
    save_run(tmp_path, [2])
    assert is_step(resume(tmp_path, mesh(1, 1)), 2, mesh(1, 1))


def test_all_damaged_is_an_error_not_a_new_run(tmp_path: Path) -> None:
    save_run(tmp_path, [1, 2])
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / "checkpoints" / step / "training")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        resume(tmp_path, mesh(1, 1))


def slow_rmtree(*args: Any, rmtree: Callable[..., None] = shutil.rmtree, **kwargs: Any) -> None:
    time.sleep(0.3)
    rmtree(*args, **kwargs)


def test_only_what_is_complete_and_in_the_manifest_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path, [1, 2, 3])
    Run(tmp_path).manifest_lines.append(vars(entry(4)))  # a save that a kill cut off …
    shutil.copytree(  # … as Orbax leaves it
        tmp_path / "checkpoints" / "3", tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    )
    assert [e.step for e in Run(tmp_path).available()] == [1, 2, 3]
    Run(tmp_path).manifest_lines.keep_until(2)
    assert [e.step for e in Run(tmp_path).available()] == [1, 2]
    monkeypatch.setattr(shutil, "rmtree", slow_rmtree)
    assert is_step(resume(tmp_path, mesh(1, 1)), 2, mesh(1, 1))
    save_run(tmp_path, [5])  # which must not remove what the one before is still removing
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "5"]


def test_checkpoints_without_a_manifest_are_not_thrown_away(tmp_path: Path) -> None:
    save_run(tmp_path, [1])
    (tmp_path / "checkpoints.jsonl").unlink()
    with pytest.raises(UserError, match=r"lists none of the checkpoints \[1\]"):
        resume(tmp_path, mesh(1, 1))
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_the_last_k_and_extra_steps_are_kept_on_disk(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=2, extra_steps=(4,))
    save_run(tmp_path, [1, 2, 4, 5, 6, 7], config)
    assert [e.step for e in Run(tmp_path).available()] == [4, 6, 7]
    assert len(Run(tmp_path).entries()) == 6, "the manifest remembers what is gone"


def test_a_preempted_checkpoint_goes_when_the_next_is_saved(tmp_path: Path) -> None:
    save_run(tmp_path, [1])
    save_run(tmp_path, [2], kind="preempted")
    assert [e.step for e in Run(tmp_path).available()] == [1, 2]
    save_run(tmp_path, [3])
    assert [e.step for e in Run(tmp_path).available()] == [1, 3]


def test_an_unwritable_directory_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to MODEL_DIR"):
        Run.create(tmp_path / "file" / "run")


def test_too_little_room_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9)
    monkeypatch.setattr(run_module.shutil, "disk_usage", lambda path: usage)
    Run(tmp_path).check_space(10**9)
    with pytest.raises(UserError, match=r"1,000 MB free.* need 2,500 MB"):
        Run(tmp_path).check_space(25 * 10**8)


def test_a_disk_that_fails_during_a_save_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Run(tmp_path).checkpoint_writer(CheckpointConfig())
    model, training = arrays(1, mesh(1, 1))

    def full(*args: Any, **kwargs: Any) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device [source ...]")

    monkeypatch.setattr(writer._manager, "save", full)
    with pytest.raises(
        UserError, match=r"cannot save to .*: no space is left.*before it are whole"
    ):
        writer.save(entry(1), model, training, {})


@pytest.mark.parametrize("name", ["sweep[lr=1e-3]", "run*", "what?", "a]/run"])
def test_a_name_that_orbax_takes_for_a_pattern_is_refused(tmp_path: Path, name: str) -> None:
    """Orbax gathers the parts of a checkpoint with a glob of their path, and would find none."""
    with pytest.raises(UserError, match=r"MODEL_DIR .*: name it without \[ \] \* \?"):
        Run.create(tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_the_name_of_a_folder_above_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep[1]").mkdir()
    monkeypatch.chdir(tmp_path / "sweep[1]")
    with pytest.raises(UserError, match=r"sweep\[1\]/run"):
        Run.create("run")


def test_a_first_checkpoint_that_cannot_be_read_ends_the_run(tmp_path: Path) -> None:
    """Orbax reports success here; without the look nobody would know before the next start."""
    writer = Run(tmp_path / "sweep[1]").checkpoint_writer(CheckpointConfig())
    model, training = arrays(3, mesh(1, 2))
    with pytest.raises(
        UserError, match=r"first checkpoint, .*/3, cannot be read back \(.*names no"
    ):
        writer.save(entry(3), model, training, {})
    writer.close()


def test_only_the_first_save_of_a_run_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr(checkpoints, "check_readable", lambda path, *_: looked.append(path.name))
    save_run(tmp_path, [3, 5])
    save_run(tmp_path, [7])
    assert looked == ["3"]


def test_a_save_asks_nobody_for_a_preemption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX's preemption service knows one counter, and the trainer counts its own calls."""
    asked: list[int] = []
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.reached_preemption_sync_point", asked.append
    )
    save_run(tmp_path, [1, 2])
    assert asked == []
