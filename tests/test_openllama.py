"""What a pod would run, as far as it goes without one: it builds, traces and counts exactly."""

import jax
import pytest

from jaxllm import cli
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.models.batch import Batch
from jaxllm.models.decoder import abstract_params
from jaxllm.models.scoring import token_loss
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.experiment import Experiment
from jaxllm.training.learning_rate import make_schedule
from jaxllm.training.state import abstract_state


@pytest.mark.parametrize(
    ("run", "params", "steps", "batch", "peak", "checkpoints"),
    [
        ("openllama", 6_738_415_616, 250_000, (2048, 2048), 3e-4, 100),
        ("openllama_13b", 13_015_864_320, 500_000, (1024, 2048), 1.5e-4, 100),
        ("openllama_v2", 6_738_415_616, 250_000, (2048, 2048), 3e-4, 100),
        ("amber", 6_738_415_616, 274_320, (2240, 2048), 3e-4, 360),
        ("amber_reproduce", 5_798_891_520, 310_000, (1024, 4096), 3e-4, 12),
    ],
)
def test_run_files_have_their_authors_settings(
    run: str, params: int, steps: int, batch: tuple[int, int], peak: float, checkpoints: int
) -> None:
    argv = [f"--gin_file={run}.gin", "--gin.MODEL_DIR=gs://bucket/run", "--gin.MeshConfig.fsdp=8"]
    cli.load_gin(cli.parse(cli.parser("test"), argv))
    experiment = Experiment.configured()
    assert (experiment.data.batch_size, experiment.data.sequence_length) == batch
    assert experiment.model.num_params == params and experiment.train.steps == steps
    regular = experiment.checkpoints.every_steps
    assert sum(s > 0 and s % regular == 0 for s in experiment.scheduled_steps) == checkpoints
    assert make_schedule(experiment.schedule, steps)(2000) == pytest.approx(peak)
    assert any("hellaswag" in task.name for task in benchmarks().load(EvalConfig().tasks))


@pytest.mark.parametrize(
    ("size", "params"), [("3b", 3_426_473_600), ("7b", 6_738_415_616), ("13b", 13_015_864_320)]
)
def test_openllama_builds_and_traces(size: str, params: int) -> None:
    argv = (
        "--gin_file=openllama.gin", f"--gin.SIZE={size}",
        "--gin.MODEL_DIR=gs://bucket/run", "--gin.MeshConfig.fsdp=8",
    )  # fmt: skip
    cli.load_gin(cli.parse(cli.parser("test"), argv))
    experiment = Experiment.configured()
    assert experiment.data.batch_size * experiment.data.sequence_length == 2**22
    assert {0, 2500, 250_000} <= set(experiment.scheduled_steps)

    schedule = make_schedule(experiment.schedule, experiment.train.steps)
    assert schedule(2000) == pytest.approx(3e-4)
    assert schedule(250_000) == pytest.approx(3e-5)
    optimizer = experiment.train.optimizer.build(schedule, abstract_params(experiment.model))
    state = abstract_state(experiment.model, optimizer, make_mesh(MeshConfig()))
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    assert sum(sizes) == experiment.model.num_params == params

    rows, length = 8, experiment.data.sequence_length
    tokens = jax.ShapeDtypeStruct((rows, length), "int32")
    weights = jax.ShapeDtypeStruct((rows, length), "float32")
    domains = jax.ShapeDtypeStruct((rows,), "int32")
    batch = Batch(
        inputs=tokens, targets=tokens, weights=weights, positions=tokens, segment_ids=tokens,
        domains=domains,
    )  # fmt: skip

    def loss(params: dict, batch: Batch) -> jax.Array:
        return token_loss(experiment.model, params, batch)[0]

    gradients = jax.eval_shape(jax.grad(loss), state.params, batch)
    assert [leaf.size for leaf in jax.tree.leaves(gradients)] == sizes
