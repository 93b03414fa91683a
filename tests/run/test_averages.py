"""Averages of checkpoints: their arithmetic, and the run directory that they make."""

import json
import shutil
from pathlib import Path

import gin
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm import average, convert
from jaxllm.errors import UserError
from jaxllm.run import averages
from jaxllm.run.run import Run
from jaxllm.training.loop import train
from jaxllm.training.optimizer import EmaState, with_ema
from tests.chaos.driver import read_item
from tests.training.helpers import experiment, mesh, stages


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from(["float32", "bfloat16"]))
def test_a_mean_is_that_of_float64_bitwise(count: int, seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    members = [rng.normal(size=(3, 5)).astype(jnp.dtype(dtype)) for _ in range(count)]
    ours = averages.mean(members, np.ones(count))
    expected = np.mean(np.stack(members).astype(np.float64), axis=0).astype(jnp.dtype(dtype))
    assert ours.dtype == expected.dtype
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("kind", "multiplier"),
    [("uniform", lambda i, k: 1 - i / (k + 1)), ("sqrt", lambda i, k: 1 - np.sqrt(i / (k + 1)))],
)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_weights_emulate_the_decay_of_their_name(kind, multiplier, k: int) -> None:
    """theta_n + sum of w_i times the i-th update, as WSM's equation 4 says."""
    rng = np.random.default_rng(k)
    updates = rng.normal(size=(k, 7))
    path = np.concatenate([np.zeros((1, 7)), np.cumsum(updates, axis=0)])
    weights = averages.weights(kind, k + 1)
    merged = weights @ path / weights.sum()
    decayed = sum(multiplier(i, k) * updates[i - 1] for i in range(1, k + 1))
    np.testing.assert_allclose(merged, decayed, atol=1e-12)


def test_weights_of_an_exponential_average() -> None:
    np.testing.assert_allclose(averages.weights("ema", 3, 0.5), [0.25, 0.5, 1.0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that keeps a moving average, with checkpoints 0, 1, 2, 4, 8, 10."""
    directory = tmp_path_factory.mktemp("averages") / "run"
    e = experiment(directory, ema_decay=0.8)
    text = "ModelConfig.vocab_size = 32"
    train(e, mesh(2, fsdp=2), stages(e), config_text=text)
    return Run.open(directory)


def params(run: Run, step: int) -> dict[str, np.ndarray]:
    return read_item(Path(run.layout.checkpoint(step)) / "model")


def test_every_window_of_a_run_has_its_average(run: Run, tmp_path: Path) -> None:
    average.main([str(run.path), "--last=3", f"--to={tmp_path}/averaged"])
    made = Run.open(tmp_path / "averaged")
    steps = [entry.step for entry in run.select(None)]
    assert [entry.step for entry in made.available()] == steps[2:]
    newest = made.available()[-1]
    assert (newest.kind, newest.tokens) == ("average", run.available()[-1].tokens)
    for name, value in params(made, steps[-1]).items():
        members = np.stack([params(run, step)[name] for step in steps[-3:]])
        expected = np.mean(members, axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(value, expected, name)
    assert made.name == "averaged" and made.config() == run.config()


def test_the_moving_average_is_taken_from_the_checkpoints(run: Run, tmp_path: Path) -> None:
    """The run's is that of all its steps; here a chain of one step each has them all."""
    average.main([str(run.path), "--ema", f"--to={tmp_path}/ema"])
    made = Run.open(tmp_path / "ema")
    first, second = (params(run, step) for step in (0, 1))
    for name, value in params(made, 1).items():
        np.testing.assert_allclose(value, 0.8 * first[name] + 0.2 * second[name], rtol=1e-5)
    third = params(run, 2)
    for name, value in params(made, 2).items():
        expected = 0.8 * params(made, 1)[name] + 0.2 * third[name]
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_an_average_begins_a_branch_but_resumes_no_run(run: Run, tmp_path: Path) -> None:
    average.main([str(run.path), "--steps=4,8", f"--to={tmp_path}/both"])
    e = experiment(tmp_path / "both", steps=12)
    with pytest.raises(UserError, match="has parameters alone"):
        train(e, mesh(1), stages(e))
    child = experiment(tmp_path / "child", steps=4, branch_from=f"{tmp_path}/both@8:params")
    assert train(child, mesh(1), stages(e)).finished
    began = params(Run.open(tmp_path / "child"), 0)
    assert all(np.array_equal(began[n], v) for n, v in params(Run(tmp_path / "both"), 8).items())


def test_an_average_is_exported(run: Run, tmp_path: Path) -> None:
    average.main([str(run.path), "--steps=4,8", f"--to={tmp_path}/both"])
    fields = ["num_layers=1", "embed_dim=16", "mlp_dim=32", "num_heads=2", "max_length=8"]
    gin.clear_config()
    convert.main([f"--from={tmp_path}/both", "--step=8", f"--to=hf:{tmp_path}/hf",
                  *(f"--gin.ModelConfig.{field}" for field in fields)])  # fmt: skip
    from safetensors.numpy import load_file

    exported = load_file(tmp_path / "hf" / "model.safetensors")
    embedding = params(Run(tmp_path / "both"), 8)["['embedding']"]
    np.testing.assert_array_equal(exported["model.embed_tokens.weight"], embedding)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give one of"),
        (("--last=3", "--steps=1,2"), "give one of"),
        (("--last=99",), "average of the last 99: the run has"),
        (("--steps=3",), "no checkpoint of step 3"),
        (("--ema", "--weights=sqrt"), "--weights is not read with --ema"),
    ],
)
def test_what_is_no_average_is_refused(
    run: Run, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        average.main([str(run.path), f"--to={tmp_path}/none", *flags])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 300 * 2**-24), ("bfloat16", 2e-2)])
def test_a_moving_average_is_numpys(dtype: str, tolerance: float) -> None:
    """In bfloat16, too, where rounding to nearest would stand still at 1 - decay = 1/500."""
    optimizer = with_ema(optax.sgd(0.05), 0.998, dtype)
    theta, expected = jnp.ones(256), np.ones(256)
    state = optimizer.init(theta)
    for _ in range(300):
        updates, state = optimizer.update(jnp.sign(theta) * 0.1 + 0.01, state, theta)
        theta = optax.apply_updates(theta, updates)
        expected = 0.998 * expected + 0.002 * np.asarray(theta)
    assert isinstance(state, EmaState) and state.ema.dtype == dtype
    assert expected[0] < 0.75
    assert float(np.mean(np.asarray(state.ema, np.float64))) == pytest.approx(
        expected[0], abs=tolerance
    )


def test_stages_of_other_models_are_not_averaged(run: Run, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    shutil.copytree(run.path, staged)
    metadata = staged / "checkpoints" / "8" / "_CHECKPOINT_METADATA"
    saved = json.loads(metadata.read_text())
    saved["custom_metadata"]["model"]["rope_theta"] = 500.0
    del saved["custom_metadata"]["crc32"]
    metadata.write_text(json.dumps(saved))
    message = r"checkpoints 8 and 10 of .*staged differ in rope_theta, 500\.0 and 10000\.0"
    with pytest.raises(UserError, match=message):
        average.main([str(staged), f"--to={tmp_path}/none", "--steps=8,10"])
    assert not (tmp_path / "none").exists()
    average.main([str(staged), f"--to={tmp_path}/early", "--steps=2,4"])
