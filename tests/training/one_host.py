"""One of several hosts that train the tiny run together: `one_host.py MODEL_DIR PORT INDEX COUNT`.

A program of its own, because JAX joins hosts once per process.
"""

import sys

import jax

from tests.training.helpers import ROWS, FakeBatches, FakeSource, experiment, mesh


class LocalBatches(FakeBatches):
    """This host's rows of each batch."""

    def __next__(self):  # type: ignore[no-untyped-def]
        local = ROWS // jax.process_count()
        first = jax.process_index() * local
        return jax.tree.map(lambda rows: rows[first : first + local], super().__next__())


def main() -> None:
    model_dir, port, index, count = sys.argv[1], *map(int, sys.argv[2:])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", num_processes=count, process_id=index)

    from jaxllm.training.loop import train

    e = experiment(model_dir, steps=40, log_every=4)
    outcome = train(e, mesh(4, fsdp=2, data=2), FakeSource(), LocalBatches)
    print("finished" if outcome.finished else "stopped", outcome.step, flush=True)


if __name__ == "__main__":
    main()
