"""The training sequences of a run, as it or its parent began with them."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from jaxllm import runtime
from jaxllm.data.loader import Origin, SequenceSource, open_source
from jaxllm.data.tokenizer import with_saved_tokenizer
from jaxllm.errors import UserError
from jaxllm.run import data_identity
from jaxllm.run.branch import parse
from jaxllm.run.data_identity import DataIdentity
from jaxllm.training.experiment import Experiment


def open_data(
    experiment: Experiment, weights: Mapping[str, float] | None = None
) -> tuple[SequenceSource, DataIdentity]:
    """Open the training sequences of a run, with its saved vocabulary or its parent's, if any.

    A branch on other data than its parent's has an order of its own, in which every domain goes on
    from what the parent has read of it.

    Returns:
      The sequences, and the identity that the run saves when it begins.

    Raises:
      UserError: they differ from those that the run began with, or between hosts.
    """
    e, model_dir = experiment, experiment.model_dir
    saved, branch = data_identity.load(model_dir), None
    if saved is None and (branch := e.branch()):
        saved = data_identity.load(str(branch.parent.path))
    home = str(branch.parent.path) if branch else model_dir
    data, source, error = e.data, None, None
    if not (branch and saved and data.vocabulary.path):
        data = with_saved_tokenizer(data, data_identity.saved_tokenizer(home))
    whole = branch is None or branch.whole
    origin = Origin(saved.position, saved.domain_tokens) if saved and whole else Origin()
    try:
        source = open_source(data, weights, jax.process_count(), origin)
        if branch and saved and saved.vocabulary != source.tokenizer.identity:
            raise UserError(
                f"VocabularyConfig names another vocabulary than that of {branch.name}, on which a "
                "branch goes on: leave it out"
            )
        if branch and whole and not (saved and saved.fingerprint == source.fingerprint):
            checkpoint = branch.checkpoint
            source = source.starting_at(Origin(checkpoint.data_position, checkpoint.domain_tokens))
    except UserError as mistake:
        error = mistake
    runtime.raise_together(error)
    assert source is not None
    runtime.check_hosts_agree(
        {"vocabulary": source.tokenizer.identity, "training sequences": source.fingerprint}
    )
    at = e.train.branch_from
    begins_at = "{}@{}".format(*parse(at)) if at else None
    identity = data_identity.DataIdentity(
        source.fingerprint, source.tokenizer.identity, *source.origin, parent=begins_at
    )
    data_identity.verify(model_dir, identity)
    return source, identity
