"""Score a stack of models: one program with a leading axis for all of them, see `training.stacked`.

Likelihoods are computed once for the whole stack; text is generated model by model.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from jaxllm.evaluation.metrics import Likelihoods, Outputs
from jaxllm.evaluation.scoring import PreparedTask, Scorer, ShouldStop, never, scoring_program
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.sharding.mesh import STACK


class StackScores:
    """The likelihoods of the current parameters of a stack, [K, S] for each task scored so far."""

    def __init__(self, model: ModelConfig, mesh: Mesh, scorer: Scorer) -> None:
        """`scorer` generates for one model; `mesh` has the axis STACK."""
        self._scorer = scorer
        program = scoring_program(model, mesh)
        mapped = jax.jit(jax.vmap(program, in_axes=(0, None), spmd_axis_name=STACK))
        self._stacked = scorer.with_program(mapped)
        self._params: Params = None
        self._spans: dict[str, Likelihoods] = {}

    def of(self, params: Params) -> None:
        """Score `params`, with a leading axis, from now on."""
        self._params, self._spans = params, {}

    def run(
        self, index: int, params: Params, prepared: PreparedTask, should_stop: ShouldStop = never
    ) -> Outputs:
        """As `Scorer.run`, of one model; `params` are its own, of the stack's current ones."""
        if prepared.definition.kind in ("generation", "memorization"):
            return self._scorer.run(params, prepared, should_stop)
        name = prepared.definition.name
        if name not in self._spans:
            self._spans[name] = self._stacked.score(self._params, prepared.batches, should_stop)
        of = self._spans[name]
        own = Likelihoods(of.log_likelihood[index], of.tokens, of.greedy[index], of.each[index])
        return prepared.by_example(own)
