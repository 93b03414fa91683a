"""How much of the hardware a run uses."""

from __future__ import annotations

import jax

# Dense bf16 FLOP/s of one JAX device, by the beginning of its `device_kind`, from the vendors'
# data sheets (without sparsity). The longest name that fits counts. A v3 chip is two devices.
PEAK_FLOPS: dict[str, float] = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "Tesla T4": 65e12,
    "Tesla V100": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """The peak FLOP/s of a device; None where none is known, as for CPUs."""
    fitting = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def utilisation(flops_per_second: float, devices: int, peak: float | None) -> float | None:
    """MFU: achieved over peak FLOP/s of all devices; None where the peak is unknown."""
    return flops_per_second / (devices * peak) if peak else None
