"""Hidden states after each layer, and the command that compares those of checkpoints."""

import dataclasses
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxllm import similarity
from jaxllm.errors import UserError
from jaxllm.evaluation import features
from jaxllm.evaluation.features import states_at
from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import hidden_states, init_params, layer_states
from jaxllm.models.norms import Norm
from jaxllm.report.tables import gather
from jaxllm.run.run import Run
from jaxllm.run.token_losses import TokenSet
from jaxllm.training.loop import train
from tests.training.helpers import LENGTH, MODEL, VOCABULARY, experiment, mesh, stages

TEXT = "fake_text"


@pytest.mark.parametrize("changes", [{}, {"remat": "full"}, {"scan_layers": False}])
def test_states_after_a_layer_are_those_of_the_model_cut_there(changes) -> None:
    config = dataclasses.replace(MODEL, num_layers=3, init_stddev=0.3, **changes)
    params = jax.tree.map(
        lambda box: box.unbox(), jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)),
        is_leaf=lambda leaf: hasattr(leaf, "unbox"),
    )  # fmt: skip
    tokens = jnp.asarray([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, -1, -1]])
    known = (tokens >= 0).astype(jnp.int32)
    places = jnp.broadcast_to(jnp.arange(6), (2, 6))
    batch = Batch(jnp.maximum(tokens, 0), tokens, known, places, known, known[:, 0])
    found = jax.jit(layer_states, static_argnums=0)(config, params, tokens)
    assert found.shape == (3, 2, 6, config.embed_dim)
    norm, whole = Norm(config).apply, jax.jit(hidden_states, static_argnums=0)
    for layers in (1, 2, 3):
        cut = dataclasses.replace(config, num_layers=layers)
        stacked = jax.tree.map(lambda leaf, n=layers: leaf[:n], params["layers"])
        wanted = whole(cut, params | {"layers": stacked}, batch)
        normed = norm({"params": params["final_norm"]}, found[layers - 1])
        np.testing.assert_allclose(normed[known == 1], wanted[known == 1], atol=2e-5)


def token_set(seed: int = 0) -> TokenSet:
    """Documents of up to 13 tokens, of which the model reads 8."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(VOCABULARY, size=size) for size in (13, 5, 8, 8, 8)]
    return TokenSet.of(TEXT, ["a text of bytes"] * 5, ids, [np.arange(len(one)) for one in ids])


def trained(directory: Path, model: ModelConfig) -> str:
    e = experiment(directory, steps=4, model=model)
    text = "\n".join(f"ModelConfig.{name} = {getattr(model, name)}" for name in SAID)
    train(e, mesh(), stages(e), config_text=text)
    Run(directory).token_losses(TEXT).write_set(token_set())
    return str(directory)


SAID = ("vocab_size", "num_layers", "embed_dim", "mlp_dim", "num_heads", "max_length")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[str, str]:
    """Runs of two sizes: of two layers, 16 wide, and of three, 24 wide."""
    root = tmp_path_factory.mktemp("similarity")
    small = dataclasses.replace(MODEL, num_layers=2)
    large = dataclasses.replace(MODEL, num_layers=3, embed_dim=24, num_heads=3)
    return trained(root / "small", small), trained(root / "large", large)


def compared(*args: str, output: Path) -> pd.DataFrame:
    assert similarity.main([*args, f"--token_set={TEXT}", f"--output={output}"]) == 0
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    gin.clear_config()
    return pd.read_csv(output.with_suffix(".csv"))


def test_layers_of_two_sizes_are_all_compared(runs, tmp_path) -> None:
    small, large = (f"{run}@4" for run in runs)
    table = compared(small, large, output=tmp_path / "pair")
    assert list(zip(table.layer, table.other_layer, strict=True)) == [
        (i, j) for i in (1, 2) for j in (1, 2, 3)
    ]
    assert table.cka.between(-0.5, 1).all() and table.svcca.between(0, 1 + 1e-6).all()
    assert set(table.checkpoint) == {small} and set(table.other) == {large}
    itself = compared(small, small, output=tmp_path / "itself")
    same = itself[itself.layer == itself.other_layer]
    np.testing.assert_allclose(same.cka, 1, atol=1e-5)
    back = compared(large, small, output=tmp_path / "back")
    turned = back.pivot(index="other_layer", columns="layer", values="cka")
    wanted = table.pivot(index="layer", columns="other_layer", values="cka")
    np.testing.assert_allclose(turned, wanted, atol=1e-4)


def test_checkpoints_of_a_run_are_compared_with_its_last(runs) -> None:
    """Without --output in the run's directory, where its report finds them."""
    assert similarity.main([f"{runs[0]}/", f"--token_set={TEXT}"]) == 0
    gin.clear_config()
    place = Path(runs[0], "similarity")
    assert sorted(f.name for f in place.iterdir()) == [f"{TEXT} small.csv", f"{TEXT} small.png"]
    (place / "other.csv").write_text("token_set,checkpoint\n")
    (place / "empty.csv").write_text("")
    gathered = gather([Run(runs[0])])
    (table,) = gathered.study.layers
    assert sum("has no similarities of layers" in note for note in gathered.notes) == 2
    steps = [entry.step for entry in Run(runs[0]).available()]
    assert list(dict.fromkeys(table.checkpoint)) == [f"{runs[0]}@{step}" for step in steps[:-1]]
    assert set(table.other) == {f"{runs[0]}@{steps[-1]}"}
    assert len(table) == 4 * (len(steps) - 1)


@pytest.mark.parametrize("axes", [{}, {"data": 2}])
def test_states_at_chosen_tokens_are_those_of_whole_documents(axes) -> None:
    on, model = mesh(axes.get("data", 1), **axes), dataclasses.replace(MODEL, num_layers=2)
    params = jax.tree.map(
        lambda box: box.unbox(), jax.jit(init_params, static_argnums=0)(model, jax.random.key(0)),
        is_leaf=lambda leaf: hasattr(leaf, "unbox"),
    )  # fmt: skip
    text = token_set()
    chosen = np.array([25, 0, 13, 5, 7, 40, 19])  # none of document 2, in no order
    found = states_at(model, params, on, text, chosen)
    states = jax.jit(layer_states, static_argnums=0)
    assert found.shape == (2, 7, 16) and found.dtype == np.float32
    for number, token in enumerate(chosen):
        own = text.tokens[text.documents == text.documents[token]][None, :LENGTH]
        wanted = states(model, params, jnp.asarray(own))[:, 0, text.positions[token]]
        np.testing.assert_allclose(found[:, number], wanted, atol=1e-5)


def test_tokens_are_drawn_by_seed_from_what_the_models_read(runs, monkeypatch, tmp_path) -> None:
    drawn: list[np.ndarray] = []

    def states(model, params, mesh, text, chosen):
        drawn.append(chosen)
        return np.random.default_rng(0).normal(size=(2, len(chosen), 3))

    monkeypatch.setattr(features, "states_at", states)
    for flags in ((), ("--tokens=9",), ("--tokens=9", "--seed=1")):
        compared(f"{runs[0]}@0", f"{runs[0]}@4", *flags, output=tmp_path / "seen")
    every, _, some, same, others, _ = drawn
    np.testing.assert_array_equal(np.sort(every), np.flatnonzero(token_set().positions < LENGTH))
    np.testing.assert_array_equal(some, same)
    assert len(set(some)) == 9 and set(some) != set(others)
    with pytest.raises(UserError, match="--tokens=3: four tokens at least"):
        compared(f"{runs[0]}@0", f"{runs[0]}@4", "--tokens=3", output=tmp_path / "few")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("{small}@4", "{large}@4", "{large}@4"), "or two checkpoints RUN@STEP"),
        (("{small}@4", "{large}"), "write RUN@STEP"),
        (("{small}@4", "{large}@3"), "3"),
        (("{small}@4", "{other}@4"), "other texts or tokens"),
        (("{small}@4", "{bare}@4"), f"has no token set {TEXT}"),
    ],
)
def test_mistakes_get_one_line(args, message, runs, tmp_path) -> None:
    import shutil

    names = {"small": runs[0], "large": runs[1]}
    for name in ("other", "bare"):
        names[name] = str(shutil.copytree(runs[0], tmp_path / name))
        shutil.rmtree(tmp_path / name / "token_losses")
    Run(names["other"]).token_losses(TEXT).write_set(token_set(1))
    with pytest.raises(UserError, match=message):
        compared(*(arg.format(**names) for arg in args), output=tmp_path / "none")
    assert not (tmp_path / "none.csv").exists()
