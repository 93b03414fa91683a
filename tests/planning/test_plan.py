"""`python -m jaxllm.plan` as its users run it."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
TINY = (
    "--gin_file=quickstart.gin", "--gin.ModelConfig.num_layers=5", "--gin.BATCH_SIZE=16",
    "--gin.SEQUENCE_LENGTH=256", "--gin.ModelConfig.dtype='bfloat16'",
    "--gin.ModelConfig.embed_dim=256", "--gin.ModelConfig.num_heads=2",
)  # fmt: skip


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "jaxllm.plan", *arguments],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_cpu_devices_show_memory_and_traffic() -> None:
    done = plan(
        *TINY, "--devices=cpu:8", "--json", "--gin.MeshConfig.fsdp=4", "--gin.MeshConfig.tensor=2"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and found["mesh"]["fsdp"] == 4 and found["mesh"]["tensor"] == 2
    estimate, program = found["estimate"], found["program"]
    # parameters, two moments and float32 on 8 devices, and the batch
    assert program["arguments"] == pytest.approx(3 * 4 * estimate["params"] / 8, rel=0.1)
    assert 0.9 < estimate["compiler_flops"] / estimate["model_flops_causal"] < 1.6
    assert {t["kind"] for t in program["traffic"]} >= {"all-gather", "all-reduce"}
    assert estimate["step_seconds"] is None


def test_activations_are_what_a_policy_keeps() -> None:
    """Closed forms, in bytes of a device: 5 layers, 16 x 256 tokens on 8 devices, bfloat16."""
    width = 5 * 16 * 256 // 8 * 256 * 2
    found = {}
    for policy in ("residual", "full"):
        done = plan(
            *TINY, "--devices=cpu:8", "--fit", "--json", f"--gin.ModelConfig.remat='{policy}'"
        )
        assert done.returncode == 0, done.stderr
        found[policy] = json.loads(done.stdout)["program"]
        assert found[policy]["activations"] <= found[policy]["temporaries"]
    assert found["full"]["activations"] == width
    assert found["residual"]["activations"] == 2 * width


@needs_tpu_compiler
def test_a_slice_is_planned_without_one() -> None:
    done = plan(*TINY, "--topology=v5e-8", "--gin.ModelConfig.remat='minimal'")
    assert done.returncode == 0, done.stderr
    for part in ("memory ", "compute ", "HBM ", "ICI ", "step ", "MFU ", "chip-hours"):
        assert part in done.stdout, done.stdout


@needs_tpu_compiler
@pytest.mark.slow
def test_two_slices_take_the_time_of_one_and_what_goes_between() -> None:
    """Twice the rows on twice the chips; the compiler has no time for what leaves a slice."""
    found = []
    for slices, rows in ((1, 16), (2, 32)):
        done = plan(
            *TINY, "--topology=v5e-4", f"--slices={slices}", f"--gin.MeshConfig.data={slices}",
            f"--gin.BATCH_SIZE={rows}", "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["estimate"])
    one, two = found
    assert 0.9 < two["compiler_seconds"] / one["compiler_seconds"] < 1.3
    assert one["dcn_seconds"] == 0 and two["dcn_seconds"] > 0


@needs_tpu_compiler
@pytest.mark.slow
def test_what_does_not_fit_says_by_how_much_and_what_would_help() -> None:
    done = plan(
        "--gin_file=openllama.gin", "--topology=v5e-4", "--gin.MeshConfig.fsdp=4",
        "--gin.BATCH_SIZE=4", "--gin.TrainConfig.gradient_accumulation=1",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "does not fit by" in done.stdout and "--gin.ModelConfig.remat" in done.stdout


@needs_tpu_compiler
@pytest.mark.slow
def test_search_ranks_what_fits() -> None:
    done = plan(*TINY, "--topology=v5e-4", "--search=2", "--json", "--gin.ModelConfig.num_layers=2")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    steps = [r["estimate"]["step_seconds"] for r in results if r["estimate"]]
    assert len(steps) >= 2 and steps == sorted(steps)
    assert sum("MeshConfig.fsdp=4" in r["bindings"] for r in results) == 1


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
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < 0.8


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
def test_mistakes_are_one_line(arguments: tuple[str, ...], says: str) -> None:

    done = plan("--gin_file=quickstart.gin", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert re.search(says, line), line
