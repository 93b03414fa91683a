"""The scoring of a run's checkpoints as a plan counts it, and the rest of the bill."""

import dataclasses

import jax
import pytest

from jaxllm import cli, plan
from jaxllm.evaluation.config import EvalConfig
from jaxllm.planning import scoring, targets
from jaxllm.planning.bill import EXAMPLE_BYTES, PROCESS_BYTES, RECORD_BYTES, bill
from jaxllm.planning.summary import Plan
from jaxllm.sharding.chips import chip_of
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.experiment import Experiment, make_evaluators
from tests.evaluation.helpers import sharded_params

RUN = (
    "--gin_file=quickstart.gin", "--gin.VocabularyConfig.path=bytes",
    "--gin.CheckpointConfig.keep_last=3",
    "--gin.EVAL_TASKS=('counting', 'held_out_docstrings', 'addition_exact', 'hellaswag', 'piqa')",
)  # fmt: skip
TASKS = ("counting", "held_out_docstrings")
TPU = targets.Target("as if", jax.devices()[:4], 1, chip_of("TPU v5 lite"))


def load(*bindings: str) -> Experiment:
    cli.load_gin(cli.parse(cli.parser(""), [*RUN, *bindings]))
    return Experiment.configured()


@pytest.fixture(scope="module")
def planned() -> Plan:
    """A run on four CPU devices, with the speed of a TPU's."""
    experiment = load()
    return Plan.of(experiment, TPU, MeshConfig(), True, EvalConfig(), bandwidth=2e9, price=3.0)


def test_the_sequences_are_those_that_the_evaluator_scores(planned, tmp_path):
    experiment = load(f"--gin.MODEL_DIR={tmp_path}")
    mesh = make_mesh(MeshConfig(), TPU.devices)
    config = dataclasses.replace(EvalConfig(), tasks=TASKS)
    (evaluator,) = make_evaluators(experiment, mesh, config)
    score, rows = evaluator._scorer._score, []

    def counted(params, batch):
        rows.append(batch.inputs.shape)
        return score(params, batch)

    evaluator._scorer._score = counted
    params = sharded_params(experiment.model, mesh)
    records = evaluator.evaluate(params, step=0, tokens=0, flops=0.0)
    assert planned.scoring.sequences == sum(b for b, _ in rows)
    assert planned.scoring.positions == sum(b * t for b, t in rows)
    assert planned.scoring.examples == sum(r.n for r in records if r.primary)
    assert planned.scoring.tasks == len(TASKS)


def test_what_is_not_counted_is_named_with_the_reason(planned):
    absent, generated = planned.scoring.not_counted
    assert absent.startswith("hellaswag, piqa: task hellaswag") and "EvalConfig.data_dir" in absent
    assert generated == "addition_exact: the time depends on the answers"
    assert f"            not counted: {absent}" in planned.text(timed=True).splitlines()


def test_scoring_takes_the_forward_pass_of_its_positions(planned):
    model, found = planned.experiment.model, planned.scoring
    forward = model.flops_per_token(model.max_length) / 3 * found.positions
    at_peak = forward / len(TPU.devices) / TPU.chip.flops
    assert found.seconds == pytest.approx(found.seconds_per_million * found.positions / 1e6)
    assert found.seconds > 0.8 * at_peak  # limited by memory and links, as so small a model is
    total = found.checkpoints * found.seconds
    steps = planned.experiment.train.steps * planned.estimate.step_seconds
    assert found.checkpoints == len(planned.experiment.scheduled_steps) == 12
    assert found.share == pytest.approx(total / (total + steps))
    assert planned.bill.days * 86_400 == pytest.approx(total + steps)


def test_the_bill_is_a_closed_form(planned):
    e, found = planned.experiment, planned.bill
    params, hours = e.model.num_params, found.days * 24 * 4
    assert found.checkpoint_bytes == pytest.approx(3 * 4 * params, rel=1e-4)  # and a few counters
    assert found.checkpoint_seconds == found.checkpoint_bytes / 2e9
    assert (found.checkpoints, found.checkpoints_retained) == (12, 3)
    assert found.token_store_bytes == 2700 * 8 * 128 * 2
    assert (found.requests_per_step, found.requests) == (8, 2700 * 8)
    assert found.trajectory_bytes == 12 * (
        2 * RECORD_BYTES + planned.scoring.examples * EXAMPLE_BYTES
    )
    assert found.hosts == 1
    assert found.host_bytes - PROCESS_BYTES == pytest.approx(found.checkpoint_bytes, rel=0.01)
    assert found.chip_hours == pytest.approx(hours) and found.dollars == pytest.approx(3 * hours)


def test_large_vocabularies_take_four_bytes_a_token(planned):
    wide = dataclasses.replace(planned.experiment.model, vocab_size=65_600)
    experiment = dataclasses.replace(planned.experiment, model=wide)
    mesh = make_mesh(MeshConfig(), TPU.devices)
    found = bill(experiment, TPU, mesh, None, None, bandwidth=1e9, price=3.0)
    assert found.token_store_bytes == 2 * planned.bill.token_store_bytes
    assert found.days is None and found.dollars is None and found.trajectory_bytes == 0


def test_a_large_share_offers_an_interval_that_brings_it_down(planned):
    """11 checkpoints of 50 s, or 5, or 4, beside 2000 s of steps."""
    scheduled = tuple(range(0, 1001, 100))
    share, every = scoring.share_of(EvalConfig(), scheduled, 50.0, 2.0)
    assert share == pytest.approx(550 / 2550) and every == 4
    assert scoring.share_of(EvalConfig(every=3), scheduled, 50.0, 2.0) == (250 / 2250, 4)
    assert scoring.share_of(EvalConfig(every=4), scheduled, 50.0, 2.0) == (200 / 2200, None)
    assert scoring.share_of(EvalConfig(), scheduled, 10.0, 2.0) == (110 / 2110, None)
    assert scoring.share_of(EvalConfig(), scheduled, 1e4, 2.0)[1] is None  # two are too many

    slow = planned.scoring._replace(share=0.216, every=4)
    text = planned._replace(scoring=slow).text(timed=True)
    assert "warning: scoring takes 22% of the run; --gin.EvalConfig.every=4 brings it" in text
    text = planned._replace(scoring=slow._replace(every=None)).text(timed=True)
    assert "--gin.EvalConfig.max_examples=N brings it" in text


def test_the_text_has_the_bill(planned):
    """With figures of a run of everyday size."""
    size = planned.bill._replace(
        checkpoint_bytes=80_900_000_000, checkpoint_seconds=40.45, days=2.0, chip_hours=192.0,
        dollars=576.0,
    )  # fmt: skip
    text = planned._replace(bill=size).text(timed=True)
    assert (
        "checkpoints 12 of 80.9 GB, 3 retained (243 GB), each written in 40.5 s at 2 GB/s" in text
    )
    assert "\nrun         2.0 days, 192 chip-hours, $576, at the ideal speed\n" in text
    assert "\nexpected    4.0 days, 384 chip-hours, $1,152, at 0.5 of it (published" in text


def test_columns_are_aligned(planned):
    lines = planned.text(timed=True).splitlines()
    assert all(len(line) <= 12 or line[12:].strip() for line in lines)
    assert all(line[11] in " " for line in lines if len(line) > 12 and line[0].islower())


def test_a_plan_that_needs_libtpu_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(plan.UserError, match=r"pip install 'jaxllm\[tpu\]'"):
        plan.main([*RUN, "--topology=v4-8"])


@pytest.mark.parametrize("flag", ["--price=0", "--bandwidth=-1", "--bandwidth=nan"])
def test_rates_are_positive(flag):
    with pytest.raises(plan.UserError, match=f"{flag.split('=')[0]}=.*a number above 0"):
        plan.main([*RUN, "--devices=cpu:8", flag])
