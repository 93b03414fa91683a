"""One of several processes that score and generate: `python -m … PORT PROCESS PROCESSES`.

Prints RESULT and a JSON list: log-likelihoods, generated tokens, and after how many batches it left
when the last process had been asked to stop.
"""

import json
import sys

import flax.linen as nn
import jax

from jaxllm.evaluation.inference import Decoding
from jaxllm.evaluation.packing import pack
from jaxllm.evaluation.scoring import Interrupted, Scorer, never
from jaxllm.models.decoder import init_params
from jaxllm.models.sampling import Sampling
from jaxllm.sharding.rules import param_shardings


def main(port: int, rank: int, count: int) -> None:
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, rank)
    from tests.evaluation.helpers import TINY, Bytes, Signs, mesh
    from tests.evaluation.test_scoring import make_spans

    on = mesh(data=2, fsdp=2)
    boxed = jax.eval_shape(lambda: init_params(TINY, jax.random.key(0)))
    init = jax.jit(
        lambda: nn.unbox(init_params(TINY, jax.random.key(0))),
        out_shardings=param_shardings(on, boxed),
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

    def last_host_stops_at_the_second_batch() -> bool:
        asked.append(0)
        return rank == count - 1 and len(asked) == 2

    try:
        scorer.score(params, packed, last_host_stops_at_the_second_batch)
        left = None
    except Interrupted:
        left = len(asked)
    print("RESULT", json.dumps([scores.log_likelihood.tolist(), said, left]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
