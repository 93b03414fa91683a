"""Open models by name for inference: RUN, RUN@STEP or hf:DIR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import gin
from jax.sharding import Mesh

from jaxllm import runtime
from jaxllm.errors import UserError
from jaxllm.io import fetched
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.sharding.mesh import MeshConfig, make_mesh

if TYPE_CHECKING:
    from jaxllm.data.vocabularies import TokenizerVocabulary

HF = "hf:"


class Opened(NamedTuple):
    """A model with its parameters on the mesh, unboxed."""

    name: str  # RUN@STEP, or hf:DIR
    model: ModelConfig
    params: Params
    vocabulary: TokenizerVocabulary


def open_models(
    names: Sequence[str], load_gin: Callable[[str | None], None]
) -> tuple[list[Opened], Mesh]:
    """The models called `names`, and their mesh, that of the first.

    `load_gin(run)` binds the settings of a run directory (None: none) and the command line's.
    UserError for an unknown model, or two of different vocabularies.
    """
    opened: list[Opened] = []
    for name in names:
        gin.clear_config()
        directory, step = split(name)
        load_gin(None if name.startswith(HF) else directory)
        if not opened:
            mesh = make_mesh(MeshConfig())
        opened.append(_open(name, directory, step, mesh))
        _check_vocabulary(opened[0], opened[-1])
    return opened, mesh


def split(name: str) -> tuple[str, int | None]:
    """The directory of a model, and the step of RUN@STEP."""
    directory, _, step = name.rpartition("@")
    if directory and step.isdigit() and not name.startswith(HF):
        return directory, int(step)
    return name, None


def _open(name: str, directory: str, step: int | None, mesh: Mesh) -> Opened:
    runtime.import_seqio()  # late: a misspelt setting is found before

    from jaxllm.data.vocabularies import build_vocabulary, from_directory
    from jaxllm.interop import huggingface
    from jaxllm.run.run import Run
    from jaxllm.training.experiment import Experiment

    if name.startswith(HF):
        path = fetched(name.removeprefix(HF))
        return Opened(name, *huggingface.load(path, mesh), from_directory(path))
    run, experiment = Run(directory), Experiment.configured()
    if not (entries := run.available() if step is None else run.select(str(step))):
        raise UserError(f"{directory} has no checkpoints")
    step = entries[-1].step
    model = experiment.at(step).model
    params = run.restore_params(step, model, mesh)
    vocabulary = build_vocabulary(experiment.data, directory)
    return Opened(f"{directory}@{step}", model, params, vocabulary)


def _check_vocabulary(first: Opened, other: Opened) -> None:
    """Raise UserError for vocabularies whose ids are not the same tokens (files may differ)."""
    one, two = first.vocabulary.tokenizer, other.vocabulary.tokenizer
    tokens = lambda of: (of.bos, of.eos, [of.token(i) for i in range(of.size)])
    if one.identity != two.identity and tokens(one) != tokens(two):
        sizes = f"{first.name} ({one.size:,} tokens) and {other.name} ({two.size:,})"
        raise UserError(f"{sizes} have different vocabularies: they cannot be combined")
