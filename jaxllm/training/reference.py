"""The reference model of DoReMi: a checkpoint of another run, whose losses the proxy's exceed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxllm.data import tokenizer
from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig
from jaxllm.run import data_identity
from jaxllm.run.branch import parse
from jaxllm.run.restore import saved_json
from jaxllm.run.run import Run
from jaxllm.training.config import DoReMiConfig
from jaxllm.training.experiment import Experiment

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.data.tokenizer import Tokenizer


class Reference(NamedTuple):
    """A checkpoint, and the model that it is of."""

    run: Run
    step: int
    model: ModelConfig

    @classmethod
    def of(cls, proxy: Experiment) -> Reference | None:
        """That of a run with DoReMi, of the size that its own run had; None of another run.

        What its run does not say of the model (if it is imported, or an average) is as in `proxy`.
        UserError if there is no such checkpoint.
        """
        if not isinstance(config := proxy.train.domain_weights, DoReMiConfig):
            return None
        return cls.open(config.reference, proxy.model, "TrainConfig.domain_weights: reference")

    @classmethod
    def open(cls, checkpoint: str, like: ModelConfig, name: str) -> Reference:
        """RUN@STEP, of a model as `like` but for what is saved of it; UserError with `name`."""
        path, step = parse(checkpoint, name)
        run = Run.open(path)
        (entry,) = run.select(str(step))
        saved: Mapping[str, Any] = saved_json(run.layout, step).get("model", {})
        model: dict[str, Any] = {"param_dtype": entry.dtype, **saved}
        return cls(run, step, dataclasses.replace(like, **model))

    def check_vocabulary(self, own: Tokenizer) -> None:
        """Raise UserError if the reference model has another vocabulary than the proxy."""
        path, identity = str(self.run.path), data_identity.load(str(self.run.path))
        file = data_identity.saved_tokenizer(path)
        known = identity.vocabulary if identity else file and tokenizer.read(file).identity
        if known not in (None, own.identity) or self.model.vocab_size < own.size:
            raise UserError(
                f"the reference model {path}@{self.step} has another vocabulary than this run, so "
                f"that their losses do not compare: --gin.VocabularyConfig.path={file or 'bytes'}"
            )

    def params(self, mesh: Mesh) -> Any:
        """Its parameters, sharded over `mesh`; UserError if they are of another model."""
        return self.run.restore_params(self.step, self.model, mesh)
