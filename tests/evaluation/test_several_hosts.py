"""Two processes score what one does, and leave together when one of them is asked to stop."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.devices import xla_flags

SCRIPT = """
import json, sys
import jax
port, rank, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, rank)
from jaxllm.evaluation.inference import Decoding
from jaxllm.evaluation.packing import pack
from jaxllm.evaluation.scoring import Interrupted, Scorer, never
from jaxllm.models.decoder import init_params
from jaxllm.models.sampling import Sampling
from jaxllm.sharding.rules import param_shardings
from tests.evaluation.helpers import TINY, Bytes, Signs, mesh
from tests.evaluation.test_scoring import make_spans
import flax.linen as nn

on = mesh(data=2, fsdp=2)
boxed = jax.eval_shape(lambda: init_params(TINY, jax.random.key(0)))
init = jax.jit(
    lambda: nn.unbox(init_params(TINY, jax.random.key(0))), out_shardings=param_shardings(on, boxed)
)
params = init()
scorer = Scorer(TINY, on, Bytes(), tokens_per_batch=4 * 64, shortest=16)
packed = pack(make_spans(), lengths=scorer.lengths, tokens_per_batch=scorer.tokens_per_batch)
scores = scorer.score(params, packed, never)
prompts = scorer.prompt_batches([[1, 50, 60], [1, 70]])
said = [
    scorer.decode_loop.generate(params, prompts, Decoding(Signs(), 12, (), sampling))
    for sampling in (Sampling(), Sampling(1.0, top_p=0.9))
]
asked = []

def last_host_stops_at_the_second_batch():
    asked.append(0)
    return rank == count - 1 and len(asked) == 2

try:
    scorer.score(params, packed, last_host_stops_at_the_second_batch)
    left = None
except Interrupted:
    left = len(asked)
print("RESULT", json.dumps([scores.log_likelihood.tolist(), said, left]))
"""


def run(count):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "XLA_FLAGS": xla_flags(4 // count)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port), str(rank), str(count)],
            stdout=subprocess.PIPE, text=True, env=env,
        )
        for rank in range(count)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return [json.loads(o.split("RESULT", 1)[1]) for o in outputs]


@pytest.mark.slow
def test_two_hosts_score_and_stop_as_one():
    ((scores, said, left),) = run(1)
    assert left == 2
    for others in run(2):
        assert others[0] == pytest.approx(scores, rel=1e-6)
        assert others[1:] == [said, left]
