"""Plans of a tiny run for TPUs, as JSON on stdout: `python -m tests.planning.plans_on_tpus`.

One process for all of them, as libtpu needs a process that has not started JAX.
"""

import dataclasses
import json

from jaxllm import cli
from jaxllm.planning import targets
from tests.planning.tiny import TINY


def main() -> None:
    one, two = targets.tpu_target("v5e-4"), targets.tpu_target("v5e-4", slices=2)
    cli.load_gin(cli.parse(cli.parser(""), [*TINY, "--gin.ModelConfig.remat=minimal"]))
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.planning.estimate import ideal_seconds
    from jaxllm.planning.program import measure_costs
    from jaxllm.planning.summary import Plan
    from jaxllm.sharding.mesh import MeshConfig, make_mesh
    from jaxllm.training.experiment import Experiment

    e, scored = Experiment.configured(), EvalConfig(tasks=("counting", "hellaswag"))
    plan = Plan.of(e, one, MeshConfig(), timed=True, evaluation=scored, bandwidth=1e9, price=1.2)
    twice = dataclasses.replace(e.data, batch_size=2 * e.data.batch_size)
    mesh = make_mesh(MeshConfig(data=2), two.devices)
    costs = measure_costs(dataclasses.replace(e, data=twice), mesh, two.slices)
    found = {
        "text": plan.text(timed=True),
        "estimate": plan.estimate and plan.estimate._asdict(),
        "scoring": plan.scoring and plan.scoring._asdict(),
        "two_slices": ideal_seconds(two, costs),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
