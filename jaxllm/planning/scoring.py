"""The cost of scoring the checkpoints of a run: its packed sequences on the compiled scorer."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from jaxllm.errors import UserError, one_line
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.scoring import PreparedTask, Scorer
from jaxllm.evaluation.selection import select
from jaxllm.evaluation.token_sets import read_examples
from jaxllm.planning.estimate import ideal_seconds
from jaxllm.planning.program import OutOfDeviceMemory, measure_scorer, tell
from jaxllm.planning.targets import Target
from jaxllm.runtime import import_seqio
from jaxllm.training.experiment import Experiment

MAX_SHARE = 0.1  # of a run's time, above which a plan warns


class Scoring(NamedTuple):
    """Estimated cost of scoring the checkpoints of a run; seconds are ideal, as `Estimate`'s.

    Every batch has the same number of positions. The scorer is compiled for the shape that most
    batches have, and the others are taken to cost the same.
    """

    tasks: int  # that are counted
    examples: int
    sequences: int  # of a checkpoint, in whole batches, as the evaluator runs them
    positions: int  # of these
    not_counted: tuple[str, ...]  # tasks, and why
    checkpoints: int  # that the run scores
    seconds_per_million: float | None = None  # positions
    seconds: float | None = None  # of a checkpoint; None if no task is counted, too
    share: float | None = None  # of the time of steps and scoring
    every: int | None = None  # the `EvalConfig.every` that brings a larger one to `MAX_SHARE`


def scoring_cost(
    experiment: Experiment, config: EvalConfig, target: Target, mesh: Mesh, step: float | None
) -> Scoring:
    """Count the packed sequences of the run's tasks, and time the scorer.

    `step` is the ideal time of an update in seconds; None if unknown.
    """
    model, scheduled = experiment.model, experiment.scheduled_steps
    tasks, not_counted = prepare(experiment, config, mesh)
    batches = [batch.batch for task in tasks for batch in task.batches]
    known = Scoring(
        tasks=len(tasks),
        examples=sum(len(task.examples) for task in tasks),
        sequences=sum(batch.inputs.shape[0] for batch in batches),
        positions=sum(batch.inputs.size for batch in batches),
        not_counted=not_counted,
        checkpoints=len(config.due(scheduled)),
    )
    if step is None:
        return known
    shapes = Counter((batch.inputs.shape[1], batch.targets.shape[1]) for batch in batches)
    length, targets = max(shapes, key=shapes.__getitem__, default=(model.max_length,) * 2)
    # the unit of which batches are multiples: the positions of one whole context per device
    unit = mesh.shape["data"] * mesh.shape["fsdp"] * model.max_length
    rows = unit // length
    try:
        costs = measure_scorer(experiment, mesh, target.slices, rows, length, targets)
    except OutOfDeviceMemory:
        return known._replace(not_counted=(*not_counted, "seconds: two layers do not fit"))
    # Of a loop over blocks of attention, in long sequences, the compiler counts one block.
    flops = model.flops_per_token(length, causal=True) / 3 * unit
    flops -= 2 * model.vocab_size * model.embedding_dim * (unit - rows * targets)
    uncounted = max(0.0, flops - costs.flops * len(target.devices))
    seconds = ideal_seconds(target, costs, uncounted)["step_seconds"]
    known = known._replace(seconds_per_million=seconds * 1e6 / unit)
    if not tasks:
        return known
    seconds *= known.positions / unit
    share, every = share_of(config, scheduled, seconds, step)
    return known._replace(seconds=seconds, share=share, every=every)


def prepare(
    experiment: Experiment, config: EvalConfig, mesh: Mesh
) -> tuple[list[PreparedTask], tuple[str, ...]]:
    """The log-likelihood tasks of a run in device batches, and a line for each kind of the others;
    what is not at hand (files, corpora, the vocabulary) is no error.
    """
    e, reason = experiment, ""
    prepared: dict[str, PreparedTask] = {}
    missing, generated = list[str](), list[str]()
    line = lambda names, why: f"{', '.join(names)}: {why}" if names else ""
    reason_of = lambda error: one_line(error if isinstance(error, UserError) else repr(error))
    tell(f"counting the sequences of {', '.join(config.names)}")
    try:
        import_seqio()
        from jaxllm.data.vocabularies import build_vocabulary

        vocabulary = build_vocabulary(e.data, e.train.model_dir)
        scorer = Scorer(e.model, mesh, vocabulary, config.tokens_per_batch)
    except Exception as error:
        return [], (line(config.names, reason_of(error)),)
    for group in config.names:
        of_group = dataclasses.replace(config, tasks=(group,), token_sets=())
        try:
            for name, task in select(of_group).items():
                if task.definition.kind == "generation":
                    generated.append(name)
                elif name not in prepared:
                    examples, _ = read_examples(task, vocabulary)
                    prepared[name] = scorer.prepare(task.definition, examples)
        except Exception as error:
            missing.append(group)
            reason = reason or reason_of(error)
    lines = (line(missing, reason), line(generated, "the time depends on the answers"))
    return list(prepared.values()), tuple(filter(None, lines))


def share_of(
    config: EvalConfig, scheduled: Sequence[int], seconds: float, step: float
) -> tuple[float, int | None]:
    """Scoring's share of a run of `scheduled` checkpoints, each scored in `seconds`, with an update
    in `step` seconds; where it is above `MAX_SHARE`, the `every` with which it is not.
    """

    def share(every: int) -> float:
        scoring = seconds * len(dataclasses.replace(config, every=every).due(scheduled))
        return scoring / (scoring + step * scheduled[-1])

    fewer = range(config.every, len(scheduled) + 1)
    enough = next((every for every in fewer if share(every) <= MAX_SHARE), None)
    return share(config.every), None if enough == config.every else enough
