"""Process setup before JAX starts, and joining several hosts.

--coordinator_address=auto                 on every host of a TPU pod or a Slurm job
--coordinator_address=HOST:PORT --num_processes=4 --process_id=0     elsewhere: 0, 1, 2, 3
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.rendezvous import ProcessSpec, wait_for_hosts

COMPILATION_CACHE = "~/.cache/jaxllm/compiled"

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_joined: list[ProcessSpec] = []  # of this process, once it has joined others


def add_host_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags for starting a command on several hosts."""
    add = flags.add_argument_group("several hosts").add_argument
    add(
        "--coordinator_address", metavar="HOST:PORT", help="of process 0, or auto on pods and Slurm"
    )
    add("--num_processes", type=int, metavar="N", help="processes in all")
    add("--process_id", type=int, metavar="I", help="this one: 0 to N-1")
    add("--initialization_timeout", type=int, default=300, metavar="SECONDS",
        help="how long to wait for the others (default: 300)")  # fmt: skip
    add("--heartbeat_timeout", type=int, default=100, metavar="SECONDS",
        help="how long a process may be silent before the others end (default: 100)")  # fmt: skip


def join_hosts(args: argparse.Namespace) -> None:
    """Join the hosts that the flags name; UserError, on every host, if one is not there in time."""
    address, timeout = args.coordinator_address, args.initialization_timeout
    if address is None:
        if args.num_processes is not None or args.process_id is not None:
            raise UserError("--num_processes and --process_id need --coordinator_address=HOST:PORT")
        return
    import jax

    auto = address == "auto"
    spec = _detected(timeout) if auto else _from_flags(address, args.num_processes, args.process_id)
    wait_for_hosts(spec, timeout)
    heartbeat = args.heartbeat_timeout
    jax.distributed.initialize(
        *spec, initialization_timeout=timeout, heartbeat_timeout_seconds=heartbeat
    )
    if spec.processes > 1:
        _joined.append(spec)


def is_first() -> bool:
    """Whether this process, the first, writes files and prints."""
    import jax

    return jax.process_index() == 0


def check_hosts_agree(facts: Mapping[str, str]) -> None:
    """Raise UserError on all processes if one states other texts; all processes must call it."""
    first, differ = of_first_process(dict(facts)), list[str]()
    for name, own in facts.items():
        lines = zip_longest(first[name].splitlines(), own.splitlines(), fillvalue="nothing")
        other = [f"{here[:150]}, not {there[:150]}" for there, here in lines if here != there]
        differ += [f"{name}: {line}" for line in other[:1]]
    for process, text in enumerate(_gather("; ".join(differ))):
        if text:
            raise UserError(f"host {process} does not agree with host 0 on the {text}")


def raise_together(error: UserError | None) -> None:
    """Raise the error of the first process that has one, on all; all processes must call it."""
    for process, text in enumerate(_gather(error and str(error))):
        if text is not None:
            raise error or UserError(f"host {process}: {text}")


def on_any_process(flag: bool) -> bool:
    """Whether it is true on some process; all processes must call it."""
    import jax
    from jax.experimental import multihost_utils

    several = jax.process_count() > 1
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag)))) if several else flag


def of_first_process(value: Any) -> Any:
    """The JSON value of process 0, on every process; all processes must call it."""
    return _gather(value)[0]


def _gather(value: Any) -> list[Any]:
    """The JSON values of all processes; all processes must call it."""
    import jax

    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    data = json.dumps(value).encode()
    sizes = process_allgather(np.int32(len(data))).tolist()
    padded = np.frombuffer(data.ljust(max(sizes)), np.uint8)
    return [json.loads(bytes(row)) for row in process_allgather(padded).astype(np.uint8)]


@contextlib.contextmanager
def exit_by_signals(
    codes: Mapping[int, int] = MappingProxyType({SIGTERM: 143, SIGHUP: 129}), seconds: float = 0.0
) -> Iterator[None]:
    """Signals raise SystemExit with these codes, by default a shell's; Ctrl-C, its own exception.

    A signal that is ignored, as under nohup, stays so. After `seconds`, unless 0, the process ends
    anyway: what a handler raises is lost where C code has called Python. A notebook goes on.
    """
    timers = list[threading.Timer]()

    def leave(number: int, _: Any) -> None:
        if seconds:
            timer = threading.Timer(seconds, os._exit, [codes[number]])
            timer.daemon = True
            timer.start()
            timers.append(timer)
        raise KeyboardInterrupt if number == SIGINT else SystemExit(codes[number])

    numbers = [n for n in codes if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers if sys.exc_info()[0] is not SystemExit else ():
            timer.cancel()


def end_at_second_interrupt() -> None:
    """Let the second Ctrl-C end the process at once, by a thread.

    Python runs handlers of signals only where C code returns: a compilation may take minutes.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        interrupts = 0
        while interrupts < 2:
            interrupts += os.read(reader, 1)[0] == SIGINT
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def abort(code: int) -> None:
    """Exit a failed process at once, if an ordinary exit would wait for others.

    With several processes it has a barrier. The others detect this one's end by its missing
    heartbeat, and exit as well. Alone, it waits ten minutes for Orbax's threads of a failed save.
    """
    for spec in _joined:
        ends = f"error: process {spec.process} of {spec.processes} ends, and the others will"
        first = "If it lost a connection, another host failed first: see that one's output"
        print(f"{ends}. {first}", file=sys.stderr, flush=True)
        os._exit(code)
    if any(type(thread).__module__.startswith("orbax.") for thread in threading.enumerate()):
        atexit._run_exitfuncs()
        os._exit(code)


def enable_compilation_cache(directory: str = COMPILATION_CACHE) -> None:
    """Turn on JAX's persistent compilation cache, unless JAX_COMPILATION_CACHE_DIR is set.

    Programs for CPUs are specific to a CPU model, so each model has its own directory: a home
    directory shared by several machines never gives one of them instructions that it lacks.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # set and empty: no cache
        return
    path = os.path.expanduser(directory)
    if jax.default_backend() == "cpu":
        path = f"{path}/{_cpu_model()}"
    jax.config.update("jax_compilation_cache_dir", path)


def process_age() -> float:
    """Seconds since this process began, before its first instruction in Python."""
    if start := process_start(os.getpid()):
        began = int(start) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    import psutil

    return time.time() - psutil.Process().create_time()


def process_start(pid: int) -> str:
    """The start of a process in clock ticks since boot; none if it has ended, "" if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)  # it is there, of another user with hidepid
        except ProcessLookupError:
            return "none" if os.path.exists("/proc/self/stat") else ""
        except OSError:
            pass
        return ""
    return "none" if fields[0] in "ZX" else fields[19]  # the 3rd and the 22nd field, see proc(5)


def tune_malloc() -> bool:
    """Keep freed memory in the process (glibc's mallopt), and return whether it took effect.

    XLA on CPUs allocates a program's buffers in every call, and glibc maps blocks above 32 MiB anew
    each time: a page fault per 4 KiB, a fifth of a small model's step. Call it before importing
    JAX. The cost is a larger process (1.6 instead of 0.9 GiB where a step needs 0.4).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # one growing heap, never trimmed; no mmap, no other arenas
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in options)


def silence_libtpu(pci: str = "/sys/bus/pci/devices") -> None:
    """Suppress libtpu's six-line error where it is installed for planning and there is no TPU.

    JAX initializes every backend that is installed. A TPU is a PCI device of vendor Google.
    """
    vendors = {file.read_text().strip() for file in Path(pci).glob("*/vendor")}
    if "0x1ae0" not in vendors:
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def import_seqio() -> ModuleType:
    """Import SeqIO, with the GPUs hidden from TensorFlow; takes 4 to 8 s the first time.

    TensorFlow logs that it finds no GPU before any setting of its log level counts: standard error
    is discarded meanwhile, unless TF_CPP_MIN_LOG_LEVEL is below 3.
    """
    if "seqio" in sys.modules:
        return sys.modules["seqio"]
    with open(os.devnull, "w") as null, contextlib.ExitStack() as silent:
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3":
            sys.stderr.flush()
            error = os.dup(2)
            silent.callback(os.close, error)
            silent.callback(os.dup2, error, 2)
            os.dup2(null.fileno(), 2)
        import seqio
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
    return seqio


def _from_flags(address: str, processes: int | None, process: int | None) -> ProcessSpec:
    if processes is None or process is None:
        raise UserError(f"--coordinator_address={address} needs --num_processes and --process_id")
    if not 0 <= process < processes:
        raise UserError(f"--process_id={process}: it goes from 0 to {processes - 1}")
    if not (":" in address and address.rpartition(":")[2].isdigit()):
        raise UserError(f"--coordinator_address={address}: write HOST:PORT, or auto")
    return ProcessSpec(address, processes, process)


def _detected(timeout: int) -> ProcessSpec:
    """The cluster that `jax.distributed.initialize()` would detect, but not return."""
    from jax._src.clusters import ClusterEnv

    address, processes, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, timeout
    )
    if address is None or processes is None or process is None:
        raise UserError(
            "--coordinator_address=auto: JAX finds no TPU pod and no Slurm job here; "
            "give HOST:PORT of process 0, --num_processes and --process_id"
        )
    return ProcessSpec(address, processes, process, None if devices is None else list(devices))


def _cpu_model() -> str:
    """The architecture and a digest of the CPU's model and features."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    known = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    text = "\n".join([platform.machine(), platform.processor(), *known])
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
