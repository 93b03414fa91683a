"""Real training processes at the price of a fork, of a process that has imported everything.

    python -m tests.chaos.zygote

It reads a JSON object per line: `start` with the words of a command, `cwd` and the file `output`
answers a process id; `wait` with an id answers its exit code, as subprocess has it, `poll` null
while it runs. With `slow`, a save because of a signal takes that many seconds. JAX's backend is not
initialized before the fork, so that each is a process of its own, with its own threads, handlers
and devices.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]  # without conftest, which sets devices


class Zygote:
    """The client's end, which starts and ends the process."""

    def __init__(self, home: Path, devices: int) -> None:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(home / f"xla-{devices}"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(REPOSITORY),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote"], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()  # its ordinary end takes seconds; its processes have ended
        self._process.wait()


def serve() -> None:
    import grain  # noqa: F401
    import orbax.checkpoint  # noqa: F401

    from jaxllm import runtime
    from jaxllm.evaluation import evaluator  # noqa: F401
    from jaxllm.report import alarms, items, page, tables, tensorboard, terminal  # noqa: F401
    from jaxllm.training import loop  # noqa: F401

    runtime.import_seqio()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer = os.fork()
            if not answer:
                _become(question)
        else:
            number = question.get("wait") or question["poll"]
            pid, status = os.waitpid(number, os.WNOHANG if "poll" in question else 0)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), file=answers, flush=True)


def _save_slowly(seconds: float) -> None:
    from jaxllm.run.checkpoints import CheckpointWriter

    save = CheckpointWriter.save

    def slow(self: CheckpointWriter, entry: Any, *args: Any) -> None:
        if entry.kind == "preempted":
            time.sleep(seconds)
        save(self, entry, *args)

    CheckpointWriter.save = slow  # type: ignore[method-assign]


def _become(question: dict[str, Any]) -> None:
    """Turn a fork into the command."""
    from jaxllm import cli, train

    os.setsid()
    os.chdir(question["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(question["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdin = open(0)  # noqa: SIM115
    sys.argv = ["train", *question["start"]]
    if seconds := question.get("slow"):
        _save_slowly(seconds)
    code = 1
    try:
        cli.run(train.main)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
