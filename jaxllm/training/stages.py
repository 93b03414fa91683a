"""The stages of a run: stretches with a mixture, length, batch size or learning rate of their own.

A stage is a branch within its run: it begins where the stage before it ends, with the whole state.
Where that is follows from the configs alone, so that a run seeks and resumes in any of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxllm.data import corpora
from jaxllm.data.loader import Origin, SequenceSource, open_source
from jaxllm.errors import UserError
from jaxllm.run.manifest import ManifestEntry
from jaxllm.training.experiment import Experiment, naming

if TYPE_CHECKING:
    from jaxllm.evaluation.evaluator import Evaluator


class Stage(NamedTuple):
    """A stage with what the loop needs of it; a run without stages is one."""

    experiment: Experiment
    source: SequenceSource
    evaluator: Evaluator | None = None  # scores the scheduled checkpoints
    # this host's from a global sequence index on; None where no loop reads them
    open_batches: Callable[[int], Any] | None = None


def open_sources(
    stages: Sequence[Experiment], first: SequenceSource, hosts: int = 1
) -> list[SequenceSource]:
    """The sequences of each stage, in the vocabulary of the `first`; `hosts` as `open_source`.

    A stage on the same data goes on in the order of the one before; another has an order of its
    own, in which each domain goes on from what was read of it. (With another length, its text is
    cut and shuffled anew.) UserError if it names a domain that the run's mixture does not have.
    """
    sources = [first]
    for last, stage in pairwise(stages):
        before, position = sources[-1], stage.start.sequences
        settings = [(e.data.weights, e.data.sequence_length) for e in (last, stage)]
        if settings[0] == settings[1]:
            sources.append(before)
            continue
        with naming(stage.number):
            weights = corpora.resolve(stage.data)
        origin = Origin(position, before.tokens_read(position))
        sources.append(open_source(stage.data, weights, hosts, origin, first.tokenizer))
    return sources


def epochs(stages: Iterable[Stage]) -> dict[str, float]:
    """How often all stages together read each domain, or each of its sources."""
    total: dict[str, float] = {}
    for e, source, *_ in stages:
        own = source.epochs(e.num_steps * e.data.batch_size)
        total |= {name: total.get(name, 0.0) + times for name, times in own.items()}
    return total


def check_begun(
    experiment: Experiment, sources: Sequence[SequenceSource], entry: ManifestEntry, own: bool
) -> None:
    """Raise UserError if the stages of a run do not lead to its checkpoint, or its parent's.

    What was read until then must be as it was; later stages may be anything.
    """
    stage = experiment.at(entry.step)
    # number 0, of a run without stages, is the last source, its only one
    source, here = sources[stage.number - 1], experiment.position(entry.step)
    was, now = Counter[str](), Counter[str]()
    if experiment.train.stages:
        was.update(tokens=entry.tokens, sequences=entry.data_position)
        now.update(tokens=here.tokens, sequences=here.sequences)
        for domain, tokens in source.tokens_read(here.sequences).items():
            now[f"tokens of {domain}"] = tokens
            was[f"tokens of {domain}"] = entry.domain_tokens.get(domain, 0)
    differ = [f"{was[name]} {name}, not the {now[name]}" for name in was if was[name] != now[name]]
    # data.json has what the first stage reads
    if own and max(stage.number, entry.stage) > 1 and entry.sequences != source.fingerprint:
        differ.append("other sequences than those")
    if differ:
        raise UserError(
            f"step {entry.step} came after {differ[0]} of TrainConfig.stages: restore the stages "
            "until there; those to come may change"
        )
