"""Suggestions for a plan that does not fit."""

from __future__ import annotations

from itertools import pairwise

from jaxllm.models.config import REMAT_POLICIES
from jaxllm.planning.targets import Target
from jaxllm.training.experiment import Experiment

_MORE_REMAT = dict(pairwise(REMAT_POLICIES))


def suggestions(experiment: Experiment, shape: dict[str, int], target: Target) -> list[str]:
    """Gin bindings to try, the least slowdown first."""
    e = experiment
    sequences = (
        e.data.batch_size // (shape["data"] * shape["fsdp"]) // e.train.gradient_accumulation
    )
    tips = []
    if e.model.remat in _MORE_REMAT:
        tips.append(f"--gin.ModelConfig.remat={_MORE_REMAT[e.model.remat]}")
    if sequences > 1:
        tips.append(f"--gin.TrainConfig.gradient_accumulation={2 * e.train.gradient_accumulation}")
    if shape["data"] > target.slices:
        tips.append(f"--gin.MeshConfig.fsdp={2 * shape['fsdp']} (more shards of the parameters)")
    if sequences == 1:
        tips.append(f"--gin.MeshConfig.tensor={2 * shape['tensor']} (more shards of each layer)")
    return [*tips, "a larger slice, or a smaller --gin.BATCH_SIZE"]
