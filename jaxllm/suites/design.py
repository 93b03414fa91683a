"""The runs of a suite, from its axes."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxllm.analysis.finding import amount
from jaxllm.errors import UserError
from jaxllm.suites import scale
from jaxllm.suites.config import SuiteConfig
from jaxllm.training.experiment import Experiment
from jaxllm.training.rules import Rule

DIAL = ("params", "tokens_per_param", "tokens", "flops")
# beside the runs, in the suite's directory
RESERVED = {
    "check", "logs", "proposal.gin", "proposal.json", "report", "stacks", "suite.gin", "suite.json"
}  # fmt: skip
SIZE = (*DIAL, "TRAIN_STEPS")  # axes along which runs are of one family
Point = dict[str, tuple[str, Any]]  # axis -> label and value


@dataclasses.dataclass(frozen=True)
class Member:
    """A run of a suite."""

    name: str  # of its directory, too
    bindings: Mapping[str, Any]  # on top of the suite's file
    experiment: Experiment
    begin: int = 0  # step at which it begins; above 0 for a branch
    parent: str | None = None  # name of the run of which it is a branch

    @property
    def steps(self) -> int:
        """Its last step."""
        return self.experiment.train.steps

    @property
    def tokens(self) -> int:
        """Tokens at its end."""
        return self.experiment.tokens

    @property
    def flops(self) -> float:
        """FLOPs of its own training, without its parent's."""
        return self.experiment.flops(self.tokens - self.experiment.position(self.begin).tokens)


def members(
    config: SuiteConfig,
    rule: Rule,
    length: int,
    configure: Callable[[Mapping[str, Any]], Experiment],
) -> list[Member]:
    """The runs of a suite, the cheapest first, and each before its branches, of sequences of
    `length` tokens; UserError if an axis, a name or a setting is malformed, or two runs have one
    name.

    `rule` is the law of learning rate and batch of runs that the dial sizes; `configure` gives the
    experiment of some bindings on top of the suite's file.
    """
    points: list[Point] = []
    for product in (config.axes,) if isinstance(config.axes, Mapping) else config.axes:
        columns = [_labelled(name, values) for name, values in product.items()]
        points += [dict(zip(product, row, strict=True)) for row in itertools.product(*columns)]
    if config.sample is not None:
        points = random.Random(0).sample(points, min(config.sample, len(points)))
    found = [
        one for point in points for one in _with_branches(config, point, rule, length, configure)
    ]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"SuiteConfig.name: two runs are named {name}: name all axes in it")
        if not re.fullmatch(r"\w[\w.+-]*", name) or name in RESERVED:
            raise UserError(f"SuiteConfig.name: {name!r} is no name of a directory")
    trunk = {one.name: one.flops for one in found if one.parent is None}
    return sorted(found, key=lambda one: (trunk[one.parent or one.name], one.parent or one.name))


def _labelled(axis: str, values: Any) -> list[tuple[str, Any]]:
    """The values of an axis with their labels in the names of runs: 400k, 1e13flops, seed1."""
    if isinstance(values, Mapping):
        return list(values.items())
    if not isinstance(values, tuple | list):
        values = (values,)
    if not values:
        raise UserError(f"SuiteConfig.axes: {axis} has no values")

    def label(value: Any) -> str:
        if axis == "flops":
            return f"{value:.3g}flops".replace("+", "")
        large = isinstance(value, int | float) and value >= 1e4
        short = amount(value).lower() if large else str(value)
        return short if axis == "params" else f"{axis.rpartition('.')[2].lower()}{short}"

    return [(label(value), value) for value in values]


def _with_branches(
    config: SuiteConfig,
    point: Point,
    rule: Rule,
    length: int,
    configure: Callable[[Mapping[str, Any]], Experiment],
) -> list[Member]:
    """The run at a point of the axes, and its cooldowns."""
    labels = {axis: name for axis, (name, _) in point.items()}
    names = {axis.rpartition(".")[2]: text for axis, text in labels.items()}
    try:
        name = (config.name or "_".join(f"{{{axis}}}" for axis in names)).format(**names)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(names) or "none"
        raise UserError(f"SuiteConfig.name = {config.name!r}: the axes are {known}") from error
    family = "_".join(text for axis, text in names.items() if axis not in SIZE)
    bindings: dict[str, Any] = {"TrainConfig.family": family or "suite"}
    dial = {axis: float(point[axis][1]) for axis in DIAL if axis in point}
    if dial:
        params, tokens = scale.budget(dial)
        if "flops" in dial:  # they count all parameters, embeddings included
            sized = configure(scale.shape_bindings(params))
            tokens = dial["flops"] / sized.flops(1)
        bindings |= scale.settings(params, tokens, length, rule, config.checkpoints)
    bindings |= {axis: value for axis, (_, value) in point.items() if axis not in DIAL}
    experiment = configure(bindings)
    steps, branches = experiment.train.steps, {}
    for share in config.cooldowns:
        end = round(share * steps)
        decay = experiment.schedule.decay_steps or max(1, end // 10)
        plateau = steps if experiment.schedule.kind == "constant" else steps - decay
        peak = experiment.schedule.warmup_steps <= end - decay <= plateau
        if experiment.schedule.kind == "cosine" or not peak:
            raise UserError(
                f"SuiteConfig.cooldowns = {share} of {name}: the learning rate is not at its peak "
                f"{decay} steps before; ScheduleConfig.kind = 'wsd' or 'constant' has a plateau"
            )
        branches[share] = (end - decay, end, decay)
    if branches:
        at = tuple(sorted({begin for begin, _, _ in branches.values()}))
        bindings["CheckpointConfig.extra_steps"] = at
        experiment = configure(bindings)
    run = Member(name, bindings, experiment)
    cooldowns = []
    for share, (begin, end, decay) in branches.items():
        own = bindings | {
            "TrainConfig.family": f"{bindings['TrainConfig.family']}_cooldown{share:g}",
            "TrainConfig.branch_from": f"{config.directory}/{name}@{begin}",
            "TRAIN_STEPS": end,
            "ScheduleConfig.kind": "wsd",
            "ScheduleConfig.decay_steps": decay,
        }
        cooldowns.append(Member(f"{name}_cooldown{share:g}", own, configure(own), begin, name))
    return [run, *cooldowns]
