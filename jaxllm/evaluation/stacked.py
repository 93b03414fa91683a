"""Score a stack of models: one program with a leading axis for all of them, see `training.stacked`.

Likelihoods are computed once for the whole stack; text is generated model by model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxllm.evaluation.metrics import Likelihoods, Outputs
from jaxllm.evaluation.scoring import PreparedTask, Scorer, ShouldStop, never, scoring_program
from jaxllm.evaluation.tasks import Example, TaskDefinition
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.sharding.mesh import STACK


class StackScores:
    """The likelihoods of the current parameters of a stack, [K, S] for each task scored so far."""

    def __init__(self, model: ModelConfig, mesh: Mesh, scorer: Scorer) -> None:
        """`scorer` prepares the tasks, and generates for one model; `mesh` has the axis STACK."""
        self.scorer = scorer
        program = scoring_program(model, mesh)
        mapped = jax.jit(jax.vmap(program, in_axes=(0, None), spmd_axis_name=STACK))
        self._stacked = scorer.with_program(mapped)
        self._params: Params = None
        self._spans: dict[str, Likelihoods] = {}

    def of(self, params: Params) -> None:
        """Score `params`, with a leading axis, from now on."""
        self._params, self._spans = params, {}

    def member(self, index: int) -> MemberScorer:
        """The scorer of one model."""
        return MemberScorer(self, index)

    def spans(self, prepared: PreparedTask, should_stop: ShouldStop) -> Likelihoods:
        """The likelihoods of a task's spans, [K, S]."""
        name = prepared.definition.name
        if name not in self._spans:
            self._spans[name] = self._stacked.score(self._params, prepared.batches, should_stop)
        return self._spans[name]


class MemberScorer:
    """A `Scorer` of one member of a stack."""

    def __init__(self, scores: StackScores, index: int) -> None:
        self._scores, self._index = scores, index

    def prepare(self, task: TaskDefinition, examples: Sequence[Example]) -> PreparedTask:
        """See `Scorer.prepare`."""
        return self._scores.scorer.prepare(task, examples)

    def run(self, params: Any, prepared: PreparedTask, should_stop: ShouldStop = never) -> Outputs:
        """See `Scorer.run`; `params` are the member's own, of the stack's current ones."""
        if prepared.definition.kind in ("generation", "memorization"):
            return self._scores.scorer.run(params, prepared, should_stop)
        of, i = self._scores.spans(prepared, should_stop), self._index
        own = Likelihoods(of.log_likelihood[i], of.tokens, of.greedy[i], of.each[i])
        return prepared.by_example(own)
