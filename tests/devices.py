"""XLA's flags in processes of the tests, which compile much and compute little."""

# XLA's default emitters run MLIR's passes for each fusion, and split a program for several cores:
# without them CPU programs compile in half the time.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def xla_flags(devices: int) -> str:
    """Of a process with so many virtual CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {QUICK}"
