"""`python -m jaxllm.plan` as its users run it."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from typing import Any

import gin
import jax
import pytest

from jaxllm import cli
from jaxllm import plan as command
from jaxllm.errors import UserError
from jaxllm.evaluation.config import EvalConfig
from jaxllm.models.config import ModelConfig
from jaxllm.planning import search, targets
from jaxllm.planning.bill import Bill
from jaxllm.planning.program import Costs, measure_costs
from jaxllm.planning.summary import Plan, plan_text
from jaxllm.sharding.chips import chip_of
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.experiment import Experiment
from tests.conftest import REPOSITORY
from tests.devices import QUICK
from tests.planning.tiny import TINY

MODEL = ModelConfig(
    vocab_size=1024, num_layers=5, embed_dim=128, mlp_dim=512, num_heads=2, max_length=64
)
needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def started(*arguments: str) -> str:
    """The output of Python in a process that has not started JAX."""
    environment = os.environ | {"XLA_FLAGS": QUICK}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command on the virtual CPU devices of this process: its exit code, stdout and stderr."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # which the command changes

    def run(*arguments: str) -> tuple[int, str, str]:
        return command.main(arguments), *capsys.readouterr()

    return run


def planned(*flags: str, devices: int = 8, timed: bool = False, **more: Any) -> list[Plan]:
    """The plan of each stage on so many of the virtual CPU devices."""
    cli.load_gin(cli.parse(cli.parser(""), [*TINY, *flags]))
    target = targets.Target("as if", jax.devices()[:devices], 1, None)
    return [
        Plan.of(dataclasses.replace(stage, **more), target, MeshConfig(), timed, EvalConfig(), 1e9)
        for stage in Experiment.configured().stages
    ]


@pytest.fixture(scope="module")
def on_tpus() -> dict[str, Any]:
    return json.loads(started("-m", "tests.planning.plans_on_tpus"))


def test_cpu_devices_show_memory_and_traffic(capsys: pytest.CaptureFixture[str]) -> None:
    mesh = ("--gin.MeshConfig.fsdp=4", "--gin.MeshConfig.tensor=2")
    (found,) = planned(*mesh, timed=True)
    err = capsys.readouterr().err
    assert found.fits and found.shape["fsdp"] == 4 and found.shape["tensor"] == 2
    estimate, program = found.estimate, found.program
    assert estimate and program
    # parameters, two moments and float32 on 8 devices, and the batch
    assert program.arguments == pytest.approx(3 * 4 * estimate.params / 8, rel=0.1)
    assert 0.9 < estimate.compiler_flops / estimate.model_flops_causal < 1.6
    assert {t.kind for t in program.traffic} >= {"all-gather", "all-reduce"}
    assert estimate.step_seconds is None
    # what takes the time is told as it begins, with the seconds so far
    told = [re.sub(r"^ +\d+ s  ", "", line) for line in err.splitlines()]
    update = "compiling the update of {} layer(s) on 8 device(s)"
    assert told == [update.format(n) for n in (2, 1, 2)] + ["done"]


def test_all_stages_are_planned_and_billed_together(plan) -> None:
    stages = "({'tokens': 40960}, {'batch_size': 32, 'sequence_length': 64})"
    flags = ("--gin.ModelConfig.num_layers=1", "--gin.TRAIN_STEPS=30",
             f"--gin.TrainConfig.stages={stages}")  # fmt: skip
    code, out, _ = plan(*TINY, *flags, "--devices=cpu:8", "--fit")
    assert code == 0 and "stage 2\n" in out and "expected" not in out
    gin.clear_config()
    first, second = (one.bill for one in planned(*flags))
    assert (first.requests, second.requests) == (10 * 16, 20 * 32)
    assert first.token_store_bytes + second.token_store_bytes == 2 * 40960 * 2
    experiment, target = (
        Experiment.configured(),
        targets.Target("as if", jax.devices()[:1], 1, None),
    )
    empty = Bill(*[0] * 10)
    bills = [empty._replace(days=d, chip_hours=24 * d) for d in (1.0, 3.0)]
    plans = [
        Plan(stage, target, {"data": 1, "fsdp": 1, "tensor": 1}, None, None, 1.0, None, bill, [])
        for stage, bill in zip(experiment.stages, bills, strict=True)
    ]
    assert "all stages  30 steps, 81,920 tokens, expected 8.0 days" in plan_text(plans, timed=True)


@pytest.mark.parametrize("microbatches", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_doremi_has_the_reference_models_forward_pass_in_its_plan(
    microbatches: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A third of its training FLOPs; with microbatches a third of the proxy's as well. Its
    parameters are in memory."""
    weights = {"reference": "runs/none@1"}
    (found,) = planned(
        "--gin.ModelConfig.num_layers=3", "--gin.BATCH_SIZE=8", "--gin.SEQUENCE_LENGTH=64",
        f"--gin.TrainConfig.gradient_accumulation={microbatches}",
        f"--gin.TrainConfig.domain_weights={weights}", devices=1, reference=MODEL
    )  # fmt: skip
    e, mesh, model = found.experiment, make_mesh(MeshConfig(), found.target.devices), MODEL
    own, plain = e.model, dataclasses.replace(e.train, domain_weights=None)
    alone = measure_costs(dataclasses.replace(e, train=plain, reference=None), mesh)
    scored = (model, own) if microbatches > 1 else (model,)
    forward = sum(one.flops_per_token(64) for one in scored) / 3 * e.tokens_per_step
    more = measure_costs(e, mesh).flops - alone.flops
    assert more == pytest.approx(forward, rel=0.06)
    state = 4 * (3 * own.num_params + model.num_params)
    assert found.program and found.program.arguments == pytest.approx(state, rel=0.01)
    assert f"reference   {model.num_params:,} parameters, 5 layers" in found.text(timed=False)
    assert command.with_reference(e).reference == own  # as it is not trained yet
    assert "runs/none: no such directory" in capsys.readouterr().err


def test_activations_are_what_a_policy_keeps() -> None:
    """Closed forms, in bytes of a device: 5 layers, 16 x 256 tokens on 8 devices, bfloat16."""
    width = 5 * 16 * 256 // 8 * 256 * 2
    found = {}
    for policy in ("residual", "full"):
        gin.clear_config()
        (one,) = planned(
            "--gin.ModelConfig.num_layers=5", "--gin.ModelConfig.scan_layers=True",
            f"--gin.ModelConfig.remat={policy}",
        )  # fmt: skip
        assert one.program and one.program.activations <= one.program.temporaries
        found[policy] = one.program.activations
    assert found == {"full": width, "residual": 2 * width}


@needs_tpu_compiler
def test_a_slice_is_planned_without_one(on_tpus) -> None:
    text, estimate = on_tpus["text"], on_tpus["estimate"]
    for part in (
        "memory ", "compute ", "HBM ", "ICI ", "step ", "MFU ", "chip-hours", "s a checkpoint, ",
        "1 task(s)", "% of the run", "not counted: hellaswag: ", "checkpoints ", "expected ", "$",
    ):  # fmt: skip
        assert part in text, text
    # the scorer's forward pass takes a third of an update's FLOPs, as ideal as the update's time
    update = estimate["step_seconds"] / estimate["tokens_per_step"]
    assert 0.1 < on_tpus["scoring"]["seconds_per_million"] / 1e6 / update < 1


@needs_tpu_compiler
def test_two_slices_take_the_time_of_one_and_what_goes_between(on_tpus) -> None:
    """Twice the rows on twice the chips; the compiler has no time for what leaves a slice."""
    one, two = on_tpus["estimate"], on_tpus["two_slices"]
    assert 0.9 < two["compiler_seconds"] / one["compiler_seconds"] < 1.3
    assert one["dcn_seconds"] == 0 and two["dcn_seconds"] > 0


@needs_tpu_compiler
@pytest.mark.slow
def test_what_does_not_fit_says_by_how_much_and_what_would_help() -> None:
    out = started(
        "-m", "jaxllm.plan",
        "--gin_file=openllama.gin", "--topology=v5e-4", "--gin.MeshConfig.fsdp=4",
        "--gin.BATCH_SIZE=4", "--gin.TrainConfig.gradient_accumulation=1",
    )  # fmt: skip
    assert "does not fit by" in out and "--gin.ModelConfig.remat" in out


def test_search_ranks_what_fits(monkeypatch) -> None:
    """On CPU devices with a TPU's peak figures, by what the links take."""
    free = Costs(flops=1e6, hbm_bytes=1e3, seconds=None, ici_bytes=0.0, dcn_bytes=0.0)
    monkeypatch.setattr(search, "measure_costs", lambda *_: free)
    cli.load_gin(cli.parse(cli.parser(""), [*TINY, "--gin.ModelConfig.num_layers=1"]))
    target = targets.Target("as if", jax.devices()[:4], 1, chip_of("TPU v5 lite"))
    experiment = Experiment.configured()
    meshes = search.meshes(experiment, target)[:2]
    results = search.search(experiment, target, meshes)
    steps = [r.estimate.step_seconds for r in results if r.estimate]
    assert len(steps) == 2 and steps[0] < steps[1]
    assert sum("MeshConfig.fsdp=4" in r.candidate.bindings() for r in results) == 1


@needs_tpu_compiler
def test_the_recipe_of_openllama_leaves_room_on_the_pod_it_was_trained_on() -> None:
    """State and activations; compiled, all of it takes 26 to 28 GiB of 32."""
    code = """
from jaxllm import cli
from jaxllm.planning import program, targets
target = targets.tpu_target("v4-512")
cli.load_gin(cli.parse(cli.parser(""), ["--gin_file=openllama.gin"]))
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.experiment import Experiment
experiment = Experiment.configured()
mesh = make_mesh(MeshConfig(), target.devices)
state = 3 * 4 * experiment.model.num_params / mesh.shape["fsdp"]
print((state + program.saved_activations(experiment, mesh)) / target.chip.hbm_bytes)
"""
    assert 0.5 < float(started("-c", code)) < 0.8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give one of --topology=NAME and --devices=NAME"),
        (("--topology=v5p-128", "--devices=cpu:8"), "give one of"),
        (("--topology=v5q-128",), "unknown topology 'v5q-128'"),
        (("--devices=cpu:many",), "write cpu:8, gpu or tpu"),
        (("--devices=cpu:3",), "MeshConfig|batch size 8 does not divide"),
    ],
)
def test_mistakes_are_one_line(plan, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        plan("--gin_file=quickstart.gin", *arguments)
    assert "\n" not in str(raised.value).split("\n  In call to configurable")[0]
