"""A plan as text."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import NamedTuple

from jaxllm.evaluation.config import EvalConfig
from jaxllm.models.config import REMAT_POLICIES
from jaxllm.planning.bill import REACHED, REACHED_BY, Bill, bill
from jaxllm.planning.estimate import Estimate, estimate
from jaxllm.planning.program import (
    OutOfDeviceMemory,
    Program,
    compile_update,
    measure_costs,
    tell,
)
from jaxllm.planning.scoring import MAX_SHARE, Scoring, scoring_cost
from jaxllm.planning.targets import Target
from jaxllm.sharding.chips import GIB
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.experiment import Experiment
from jaxllm.training.rules import Rule, advice

_MORE_REMAT = dict(pairwise(REMAT_POLICIES))


class Plan(NamedTuple):
    """The cost of a run on a target."""

    experiment: Experiment
    target: Target
    shape: dict[str, int]  # mesh axis -> size
    program: Program | None  # None if the compiler ran out of device memory
    estimate: Estimate | None  # None if it does not fit, or times were not requested
    excess_bytes: float | None  # None where it fits, or the amount is unknown
    scoring: Scoring | None  # None if nothing is scored in the run, or times were not requested
    bill: Bill
    advice: list[str]  # on learning rate and batch

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        target: Target,
        config: MeshConfig,
        timed: bool,
        evaluation: EvalConfig,
        bandwidth: float,
        price: float | None = None,
        rule: Rule | None = None,
    ) -> Plan:
        """Compile the update and the scorer of a run, without `timed` only for the memory."""
        mesh = make_mesh(config, target.devices)
        program = times = excess = scoring = None
        try:
            program = compile_update(experiment, mesh, target.slices)
            limit = target.chip and target.chip.hbm_bytes
            excess = program.peak - limit if limit and program.peak > limit else None
        except OutOfDeviceMemory as error:
            excess = error.excess_bytes
        if program and timed and not excess:
            with contextlib.suppress(OutOfDeviceMemory):  # unchunked loss may not fit
                costs = measure_costs(experiment, mesh, target.slices)
                times = estimate(experiment, target, program, costs)
        if program and timed and not excess and evaluation.names and evaluation.every:
            step = times and times.step_seconds
            scoring = scoring_cost(experiment, evaluation, target, mesh, step)
        tell("done")
        rest = bill(experiment, target, mesh, times, scoring, bandwidth, price)
        tokens = experiment.train.steps * experiment.tokens_per_step
        return cls(
            experiment, target, dict(mesh.shape), program, times, excess, scoring, rest,
            advice(experiment.model, tokens, rule),
        )  # fmt: skip

    @property
    def fits(self) -> bool:
        """Whether the update fits into the memory of a device."""
        return self.program is not None and self.excess_bytes is None

    @property
    def hbm_bytes(self) -> float | None:
        """Memory of a device; None if unknown."""
        return (self.target.chip and self.target.chip.hbm_bytes) or None

    @property
    def suggestions(self) -> list[str]:
        """Gin bindings to try if the plan does not fit, the least slowdown first."""
        if self.fits:
            return []
        e, shape = self.experiment, self.shape
        microbatches = e.train.gradient_accumulation
        sequences = e.data.batch_size // (shape["data"] * shape["fsdp"]) // microbatches
        tips = []
        if e.model.remat in _MORE_REMAT:
            tips.append(f"ModelConfig.remat={_MORE_REMAT[e.model.remat]}")
        if sequences > 1:
            tips.append(f"TrainConfig.gradient_accumulation={2 * microbatches}")
        if shape["data"] > self.target.slices:
            tips.append(f"MeshConfig.fsdp={2 * shape['fsdp']} (more shards of the parameters)")
        if sequences == 1:
            tips.append(f"MeshConfig.tensor={2 * shape['tensor']} (more shards of each layer)")
        return [f"--gin.{tip}" for tip in tips] + ["a larger slice, or a smaller --gin.BATCH_SIZE"]

    def text(self, timed: bool) -> str:
        """The plan for a terminal."""
        lines = [header(self.experiment, self.target, self.shape)]
        if reference := self.experiment.reference:
            size = f"{reference.num_params:,} parameters, {reference.num_layers} layers"
            lines.append(f"reference   {size}: a forward pass of each batch (DoReMi)")
        if program := self.program:
            peak, limit = program.peak, self.hbm_bytes
            of = f" of {limit / GIB:.0f} GiB ({peak / limit:.0%})" if limit else ""
            lines.append(
                f"memory      {peak / GIB:.2f} GiB{of}: state and batch "
                f"{program.arguments / GIB:.2f}, temporaries {program.temporaries / GIB:.2f} "
                f"(activations {program.activations / GIB:.2f})"
            )
        if self.program and self.estimate:
            lines += ["", *_costs(self.program, self.estimate), ""]
        elif self.fits and timed:
            lines.append("\nno times: two layers with unchunked loss, which are timed, do not fit")
        if self.scoring:
            lines += _scoring(self.scoring)
        if self.fits and timed:
            lines += _bill(self.bill)
            e = self.experiment
            own = f"learning rate {e.schedule.peak_lr:.2g}, batch {e.tokens_per_step:,} tokens"
            lines += ["", f"advice      this run: {own}", *(f"{'':12}{law}" for law in self.advice)]
        if not self.fits:
            by = f" by {self.excess_bytes / GIB:.1f} GiB" if self.excess_bytes else ""
            lines.append(f"\ndoes not fit{by}. What would help:")
            lines += [f"  {tip}" for tip in self.suggestions]
        return "\n".join(lines)


def plan_text(plans: Sequence[Plan], timed: bool) -> str:
    """The plan of a run for a terminal; of several stages, each, and what all of them cost."""
    if len(plans) == 1:
        return plans[0].text(timed)
    parts = [f"stage {p.experiment.number}\n{p.text(timed)}\n" for p in plans]
    last = plans[-1].experiment
    bills = [(plan.bill.days, plan.bill.chip_hours, plan.bill.dollars) for plan in plans]
    days, hours, dollars = (
        None if None in each else sum(each) for each in zip(*bills, strict=True)
    )
    whole = f"all stages  {last.train.steps:,} steps, {last.tokens:,} tokens"
    if all(plan.program for plan in plans):
        peak, number = max((p.program.peak, p.experiment.number) for p in plans if p.program)
        whole += f", {peak / GIB:.2f} GiB in stage {number}"
    if days and hours:
        money = f", ${dollars / REACHED:,.0f}" if dollars else ""
        whole += f", expected {days / REACHED:.1f} days, {hours / REACHED:,.0f} chip-hours{money}"
    return "\n".join([*parts, whole])


def header(experiment: Experiment, target: Target, shape: dict[str, int] | None = None) -> str:
    """Model, batch, devices and mesh, a line each."""
    e = experiment
    chip = f" {target.chip.name}" if target.chip else ""
    slices = f" in {target.slices} slices" if target.slices > 1 else ""
    lines = [
        f"model       {e.model.num_params:,} parameters, {e.model.num_layers} layers, "
        f"remat {e.model.remat}",
        f"batch       {e.data.batch_size:,} x {e.data.sequence_length:,} = "
        f"{e.tokens_per_step:,} tokens, {e.num_steps:,} steps, "
        f"{e.train.gradient_accumulation} microbatch(es) each",
        f"devices     {target.name}: {len(target.devices)}{chip}{slices}",
    ]
    if shape:
        sizes = " x ".join(f"{axis} {size}" for axis, size in shape.items() if size > 1)
        lines.append(f"mesh        {sizes or 'one device'}")
    return "\n".join(lines)


def _costs(program: Program, cost: Estimate) -> list[str]:

    def line(name: str, text: str, seconds: float | None) -> str:
        return f"{name:<12}" + (" " * 12 if seconds is None else f"{seconds:8.4f} s  ") + text

    ratio = (cost.compiler_flops + cost.kernel_flops) / cost.model_flops_causal
    flops = f"{cost.model_flops:.3e} model FLOPs a step ({cost.model_flops_causal:.3e} causal); "
    lines = [
        line("compute", f"{flops}compiled {ratio:.2f} x these", cost.compute_seconds),
        line("HBM", f"{_size(cost.hbm_bytes)} read and written by a device", cost.hbm_seconds),
    ]
    for link, seconds in (("ici", cost.ici_seconds), ("dcn", cost.dcn_seconds)):
        sent = [t for t in program.traffic if t.link == link]
        text = ", ".join(f"{t.kind} {_size(t.bytes)} ({t.calls}x)" for t in sent)
        if sent:
            lines.append(line(link.upper(), text, seconds))
    if cost.compiler_seconds is not None:
        text = "its estimate of computing and memory, without kernels"
        lines.append(line("compiler", text, cost.compiler_seconds))
    if cost.step_seconds is None:
        return [*lines, "", "no peak figures of these devices: no times"]
    return [
        *lines,
        "",
        f"step        {cost.step_seconds:.3f} s if all of it overlaps: MFU {cost.mfu:.1%} "
        f"({cost.mfu_causal:.1%} causal), {cost.tokens_per_second_per_chip:,.0f} tokens/s/chip",
    ]


def _scoring(cost: Scoring) -> list[str]:
    seconds = "" if cost.seconds is None else f"{cost.seconds:.3g} s a checkpoint, "
    share = "" if cost.share is None else f", {cost.share:.1%} of the run"
    counted = (
        f"{seconds}{cost.examples:,} examples of {cost.tasks} task(s) in {cost.sequences:,} "
        f"sequences, {cost.checkpoints:,} times{share}"
    )
    if not cost.tasks:
        rate = cost.seconds_per_million
        counted = "" if rate is None else f"{rate:.3g} s for a million positions"
    lines = [text for text in (counted, *(f"not counted: {n}" for n in cost.not_counted)) if text]
    lines = [f"{name:<12}{text}" for name, text in zip_longest(["scoring"], lines, fillvalue="")]
    if cost.share and cost.share > MAX_SHARE:
        way = f"EvalConfig.every={cost.every}" if cost.every else "EvalConfig.max_examples=N"
        lines.append(
            f"warning: scoring takes {cost.share:.0%} of the run; --gin.{way} brings it to "
            f"{MAX_SHARE:.0%} or less"
        )
    return lines


def _bill(cost: Bill) -> list[str]:
    size, seconds = cost.checkpoint_bytes, cost.checkpoint_seconds
    trajectory = f", {_size(cost.trajectory_bytes)} of trajectory" if cost.trajectory_bytes else ""
    lines = [
        f"checkpoints {cost.checkpoints:,} of {_size(size)}, "
        f"{cost.checkpoints_retained:,} retained ({_size(cost.checkpoints_retained * size)}), "
        f"each written in {seconds:.1f} s at {size / seconds / 1e9:g} GB/s beside the steps",
        f"storage     {_size(cost.token_store_bytes)} of tokens{trajectory}",
        f"requests    {cost.requests_per_step:,} for the data of a step, {cost.requests:,} in all",
        f"hosts       {cost.hosts:,}, {_size(cost.host_bytes)} each while a checkpoint is written",
    ]
    if cost.days is None or cost.chip_hours is None:
        return lines
    lines.append("")
    for name, speed, why in (
        ("run", 1.0, "at the ideal speed"),
        ("expected", REACHED, f"at {REACHED:g} of it ({REACHED_BY})"),
    ):
        money = f", ${cost.dollars / speed:,.0f}" if cost.dollars else ""
        time = f"{cost.days / speed:.1f} days, {cost.chip_hours / speed:,.0f} chip-hours{money}"
        lines.append(f"{name:<12}{time}, {why}")
    return lines


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
