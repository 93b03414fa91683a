"""What a run costs beside its steps: storage, requests, memory of the hosts, and money."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from jaxllm.data.tokenizer import id_dtype
from jaxllm.planning.estimate import Estimate
from jaxllm.planning.scoring import Scoring
from jaxllm.planning.targets import Target
from jaxllm.run.checkpoint_schedule import preserved
from jaxllm.training.experiment import Experiment
from jaxllm.training.state import abstract_state, num_bytes

# Share of the ideal speed that runs reach: published MFU of models of 7B and 2048 tokens over the
# MFU that a plan gives for them. OpenLLaMA (EasyLM, examples/pretrain_llama_7b.sh) v4 34 of 80 %;
# AXLearn's Fuji-7B (experiments/text/gpt/fuji.py) v4 43 of 80 %, v5p 55 of 86 %, v5e 37 of 76 %.
REACHED, REACHED_BY = 0.5, "published 7B runs: OpenLLaMA 0.43, AXLearn 0.49 to 0.64"
# Measured in runs of the quickstart: 2.2 to 4.2 kB, 43 to 91 bytes.
RECORD_BYTES, EXAMPLE_BYTES = 4_000, 80  # of a task at a checkpoint, of each of its examples
PROCESS_BYTES = 1_300_000_000  # resident, of a process that trains a tiny model on a CPU


class Bill(NamedTuple):
    """Storage, requests, host memory; time and money of steps and scoring at the ideal speed."""

    checkpoints: int  # saved
    checkpoints_retained: int
    checkpoint_bytes: int  # of one: parameters, optimizer state and step
    checkpoint_seconds: float  # of writing one, beside the train loop
    token_store_bytes: int  # of the tokens that the run reads, once each
    trajectory_bytes: int  # of records and per-example results
    requests_per_step: int  # range requests of all hosts: one per sequence
    requests: int  # in the run
    hosts: int
    host_bytes: int  # of a process, and of its devices' state, copied while it is written
    days: float | None = None
    chip_hours: float | None = None
    dollars: float | None = None


def bill(
    experiment: Experiment,
    target: Target,
    mesh: jax.sharding.Mesh,
    estimate: Estimate | None,
    scoring: Scoring | None,
    bandwidth: float,
    price: float | None,
) -> Bill:
    """The bill of a run, at a bandwidth of checkpoints in bytes/s and a price of a chip-hour."""
    e, steps, devices = experiment, experiment.scheduled_steps, len(target.devices)
    state = abstract_state(e.model, e.make_optimizer(), mesh)
    shards = [(x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(state)]
    of_a_device = sum(math.prod(shape) * size for shape, size in shards)
    hosts = len({device.process_index for device in target.devices})
    records = 0
    if scoring:
        of_one = scoring.tasks * RECORD_BYTES + scoring.examples * EXAMPLE_BYTES
        records = scoring.checkpoints * of_one
    known = Bill(
        checkpoints=len(steps),
        checkpoints_retained=sum(preserved(e.checkpoints, steps, ())),
        checkpoint_bytes=num_bytes(state),
        checkpoint_seconds=num_bytes(state) / bandwidth,
        token_store_bytes=e.num_steps * e.tokens_per_step * id_dtype(e.model.vocab_size).itemsize,
        trajectory_bytes=records,
        requests_per_step=e.data.batch_size,
        requests=e.data.batch_size * e.num_steps,
        hosts=hosts,
        host_bytes=PROCESS_BYTES + of_a_device * devices // hosts,
    )
    if estimate is None or estimate.step_seconds is None or target.chip is None:
        return known
    seconds = estimate.step_seconds * e.num_steps
    if scoring and scoring.seconds:
        seconds += scoring.checkpoints * scoring.seconds
    hours = seconds / 3600 * devices / target.chip.per_chip
    return known._replace(days=seconds / 86_400, chip_hours=hours, dollars=price and price * hours)
