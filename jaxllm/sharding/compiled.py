"""Compiled programs, kept for the next process that needs the same ones."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax


def keep_compiled(directory: str | None) -> None:
    """Turns on JAX's persistent compilation cache in `directory` (None: leaves it as it is).

    A program is found again by its HLO, the compiler's version and flags and the devices. Code for
    CPUs is for one kind of CPU besides, so that each kind has a directory of its own: a home that
    several machines share never gives one of them instructions that it lacks.

    JAX_COMPILATION_CACHE_DIR, where it is set, wins. Any number of processes may share it.
    """
    if directory is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    path = directory if "://" in directory else os.path.expanduser(os.path.expandvars(directory))
    if jax.default_backend() == "cpu":
        path = f"{path}/{_kind_of_cpu()}"
    jax.config.update("jax_compilation_cache_dir", path)


def _kind_of_cpu() -> str:
    """The machine's name and a digest of what its CPU can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    known = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    text = "\n".join([platform.machine(), platform.processor(), *known])
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
