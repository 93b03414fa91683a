"""XLA's flags in processes of the tests, which compile much and compute little."""

from importlib.metadata import version

# A program is not split for several cores, and the emitters that run MLIR's passes for each fusion
# are left out where others are left: CPU programs compile in half the time.
QUICK = "--xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int) -> str:
    """Of a process with so many virtual CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {QUICK}"
