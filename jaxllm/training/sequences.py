"""The training sequences of a run, as it or its parent began with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxllm import runtime
from jaxllm.data.config import VocabularyConfig
from jaxllm.data.corpora import resolve
from jaxllm.data.loader import Origin, SequenceSource, open_source
from jaxllm.data.tokenizer import with_saved_tokenizer
from jaxllm.data.vocabularies import load_tokenizer
from jaxllm.errors import UserError
from jaxllm.evaluation.tasks import TrainingSequence
from jaxllm.run import data_identity
from jaxllm.run.branch import PARAMS, parse
from jaxllm.run.data_identity import DataIdentity
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.run import Run
from jaxllm.training.experiment import BEGINNING, Experiment, Position
from jaxllm.training.stages import check_begun, open_sources

BATCHES = 64  # of a sample


def open_data(
    experiment: Experiment, weights: Mapping[str, float] | None = None
) -> tuple[list[SequenceSource], DataIdentity]:
    """Open the training sequences of a run, with its saved vocabulary or its parent's, if any.

    A branch on other data than its parent's has an order of its own, in which every domain goes on
    from what the parent has read of it. Returns the sequences of each stage, and the identity that
    the run saves when it begins; UserError if they differ from those that the run has read so far,
    or between hosts.
    """
    e, model_dir = experiment, experiment.model_dir
    saved, branch = data_identity.load(model_dir), None
    if saved is None and (branch := e.branch()):
        saved = data_identity.load(str(branch.parent.path))
    home, name = (str(branch.parent.path), branch.name) if branch else (model_dir, model_dir)
    data, error = e.stages[0].data, None
    sources: list[SequenceSource] = []
    whole = branch is None or branch.whole
    origin = Origin(saved.position, saved.domain_tokens) if saved and whole else Origin()
    try:
        known, unnamed = Run(home).settings(), branch and not data.vocabulary.path
        if unnamed or not known or _names(known, data.vocabulary):
            data = with_saved_tokenizer(data, home)
        weights = weights or resolve(data)
        tokenizer = load_tokenizer(data, weights)
        if saved and saved.vocabulary != tokenizer.identity:
            raise UserError(
                f"VocabularyConfig names another vocabulary than that of {name}, which goes on "
                "with its own: leave it out"
            )
        source = open_source(data, weights, jax.process_count(), origin, tokenizer)
        if branch and whole:
            source = _of_branch(source, branch.checkpoint, saved, bool(e.train.stages))
        sources = open_sources(e.stages, source, jax.process_count())
        begun = Run(model_dir).available()
        if entry := begun[-1] if begun else branch.checkpoint if branch and whole else None:
            check_begun(e, sources, entry, own=bool(begun))
    except UserError as mistake:
        error = mistake
    runtime.raise_together(error)
    source = sources[0]
    of_stages = " ".join(one.fingerprint for one in sources)
    runtime.check_hosts_agree(
        {"vocabulary": source.tokenizer.identity, "training sequences": of_stages}
    )
    began = e.train.branch_from
    at = "{}@{}".format(*parse(began.removesuffix(PARAMS))) if began else None
    identity = DataIdentity(source.fingerprint, source.tokenizer.identity, *source.origin, at)
    data_identity.verify(model_dir, identity)
    return sources, identity


def sample(
    experiment: Experiment, sources: Sequence[SequenceSource], count: int
) -> list[TrainingSequence]:
    """The first `count` sequences of every n-th batch of a run, planned ones included.

    n is a power of two, for up to BATCHES: the sample of a run made longer has some of the same.
    """
    e, last = experiment, experiment.train.steps
    begun = [entry for entry in Run(e.model_dir).entries() if entry.kind == "branched"]
    if not begun and not Run(e.model_dir).entries() and (branch := e.branch()):
        begun = [branch.entry]
    start = Position(begun[0].step, begun[0].tokens, begun[0].data_position) if begun else BEGINNING
    n = 1 << max(0, math.ceil(math.log2(max(1, last - start.step) / BATCHES)))
    found = []
    for step in range(start.step // n * n + n, last + 1, n):
        stage = e.at(step)
        here = (stage.start if stage.number else start).at(step - 1, stage).sequences
        source = sources[stage.number - 1]
        rows = source.sequences(here, min(count, stage.data.batch_size))
        names = ("inputs", "targets", "weights", "segment_ids")
        arrays = zip(*(rows[name] for name in names), strict=True)
        for place, (domain, of) in enumerate(zip(rows["domains"], arrays, strict=True)):
            found.append(TrainingSequence(f"{step}/{place}", step, source.domains[domain], *of))
    return found


def _names(settings: Mapping[str, Any], vocabulary: VocabularyConfig) -> bool:
    """Whether the config of a run names this vocabulary."""
    unset: dict[str, Any] = {"path": None, "size": VocabularyConfig.size, "special_tokens": {}}
    known = {n: settings.get(f"VocabularyConfig.{n}", value) for n, value in unset.items()}
    return known == dataclasses.asdict(vocabulary)


def _of_branch(
    source: SequenceSource, begins: ManifestEntry, parent: DataIdentity | None, staged: bool
) -> SequenceSource:
    """The sequences of a branch: in its parent's order, if that leads to where it begins.

    Those of a branch with stages begin with the run, as its stages do.
    """
    if parent and parent.fingerprint == source.fingerprint:
        read = source.tokens_read(begins.data_position)
        if staged or read == (begins.domain_tokens or read):
            return source
    origin = Origin() if staged else Origin(begins.data_position, begins.domain_tokens)
    return SequenceSource(source.config, source.tokenizer, source.prepared, origin)
