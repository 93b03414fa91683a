"""The evaluator of a run, with the run's vocabulary and trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxllm.data.tokenizer import with_saved_tokenizer
from jaxllm.data.vocabularies import build_vocabulary
from jaxllm.evaluation.evaluator import Evaluator
from jaxllm.run.data_identity import saved_tokenizer
from jaxllm.run.run import Run
from jaxllm.training.experiment import Experiment

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.evaluation.config import EvalConfig


def make_evaluator(experiment: Experiment, mesh: Mesh, config: EvalConfig) -> Evaluator:
    """The evaluator of `config`'s tasks, as used during training.

    Raises:
      UserError: a task is unknown, lacks its files, or does not fit the model.
    """
    return Evaluator(
        config,
        experiment.model,
        build_vocabulary(
            with_saved_tokenizer(experiment.data, saved_tokenizer(experiment.model_dir))
        ),
        mesh,
        Run(experiment.model_dir).trajectory,
        experiment.run_info,
    )
