"""Step time and MFU from the compiler's costs."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxllm.models.config import ModelConfig
from jaxllm.planning.hlo import total
from jaxllm.planning.program import Costs, Program
from jaxllm.planning.targets import Target
from jaxllm.sharding.chips import utilisation
from jaxllm.training.experiment import Experiment


class Estimate(NamedTuple):
    """Estimated cost of a step, FLOPs over all devices; no times of chips not in the table."""

    params: int
    tokens_per_step: int  # of the global batch
    model_flops: float  # with full attention (`ModelConfig.flops_per_token`)
    model_flops_causal: float
    compiler_flops: float  # of the compiled program, without kernels
    hbm_bytes: float  # read and written by each device
    kernel_flops: float  # of attention kernels, recomputation included
    compute_seconds: float | None = None  # compiler and kernel FLOPs at the chip's peak
    hbm_seconds: float | None = None  # bytes read and written at the memory bandwidth
    ici_seconds: float | None = None  # bytes sent within a slice at the link bandwidth
    dcn_seconds: float | None = None  # bytes sent between slices at the network bandwidth
    compiler_seconds: float | None = None  # of compute and memory without kernels, by the compiler
    step_seconds: float | None = None  # the longest of these, as if they overlapped perfectly
    mfu: float | None = None  # model FLOPs utilization, from `model_flops`
    mfu_causal: float | None = None
    tokens_per_second_per_chip: float | None = None  # physical chips


def estimate(experiment: Experiment, target: Target, program: Program, costs: Costs) -> Estimate:
    """Estimate the cost of a step from the compiled update and its `Costs`."""
    e, devices = experiment, len(target.devices)
    tokens, length = e.tokens_per_step, e.data.sequence_length
    full = e.model.flops_per_token(length) * tokens
    causal = e.model.flops_per_token(length, causal=True) * tokens
    known: dict[str, Any] = {
        "params": e.model.num_params,
        "tokens_per_step": tokens,
        "model_flops": full,
        "model_flops_causal": causal,
        "compiler_flops": costs.flops * devices,
        "hbm_bytes": costs.hbm_bytes,
        "kernel_flops": _kernel_flops(experiment, target),
    }
    chip = target.chip
    if chip is None or not chip.hbm_bandwidth:
        return Estimate(**known)
    sent = {f"{link}_bytes": total(program.traffic, link) for link in ("ici", "dcn")}
    times = ideal_seconds(target, costs._replace(**sent), known["kernel_flops"])
    step = times["step_seconds"]
    return Estimate(
        **known,
        **times,
        mfu=utilisation(full / step, devices, chip.flops),
        mfu_causal=utilisation(causal / step, devices, chip.flops),
        tokens_per_second_per_chip=tokens / step / devices * chip.per_chip,
    )


def ideal_seconds(target: Target, costs: Costs, kernel_flops: float = 0.0) -> dict[str, Any]:
    """The times of `Estimate`, of any program on a chip of the table; `kernel_flops` are of all."""
    chip = target.chip
    assert chip is not None
    kernels = kernel_flops / len(target.devices) / chip.flops
    compute, hbm = costs.flops / chip.flops + kernels, costs.hbm_bytes / chip.hbm_bandwidth
    ici = costs.ici_bytes / chip.ici_bandwidth if chip.ici_bandwidth else 0.0
    dcn = costs.dcn_bytes / chip.dcn_bandwidth if chip.dcn_bandwidth else None
    return {
        "compute_seconds": compute,
        "hbm_seconds": hbm,
        "ici_seconds": ici,
        "dcn_seconds": dcn,
        "compiler_seconds": costs.seconds,
        "step_seconds": max(compute, hbm, ici, dcn or 0.0, (costs.seconds or 0.0) + kernels),
    }


def _kernel_flops(experiment: Experiment, target: Target) -> float:
    """FLOPs of attention kernels, which the compiler does not count; 0 where no kernel runs.

    Forward 2 matmuls over T x T / 2 scores, backward 5 (the scores are recomputed); a remat policy
    that does not save the kernel's output runs the forward once more. DoReMi runs that of its
    reference, and with microbatches its own once more.
    """
    if target.devices[0].platform != "tpu":
        return 0.0
    e, length = experiment, experiment.data.sequence_length
    product = _product(e.model, length) * (9 if e.model.remat in ("residual", "full") else 7)
    if e.reference:
        again = _product(e.model, length) if e.train.gradient_accumulation > 1 else 0.0
        product += 2 * (_product(e.reference, length) + again)
    return product * e.tokens_per_step


def _product(model: ModelConfig, length: int) -> float:
    """FLOPs of a token of one of a kernel's matmuls, in all layers; 0 where no kernel runs."""
    plain = model.position_embedding != "alibi" and (
        not any(model.sliding_window_pattern) or model.uniform_window is not None
    )
    if not plain or length % 128:
        return 0.0
    keys = min(model.uniform_window or length, (length + 1) / 2)
    return 2.0 * model.num_layers * model.num_heads * model.head_size * keys
