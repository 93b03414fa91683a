"""Commands in processes of their own at the price of a fork, of one that has imported everything.

`python -m tests.zygote` reads a JSON object per line: `start` with a module and its arguments, the
`environment`, `cwd` and the files `output`, `errors` and `lock`, answers a process id; `poll` with
an id answers its exit code, as subprocess has it, and null while it runs. No backend of JAX is
initialized before the fork, so that each is a process of its own, with its own threads, handlers
and devices. A suite's runs are forks as well, of what the suite's fork was before it began.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parents[1]  # without conftest, which sets devices
NO_REPORT = {"JAXLLM_TESTS_NO_REPORT": "1"}
"""In the environment of a run or a suite: runs end with a page that has no charts or pictures."""


class Zygote:
    """The client's end of a process that ends with this one."""

    def __init__(self, questions: IO[str], answers: IO[str]) -> None:
        self._questions, self._answers = questions, answers
        self._folder = tempfile.TemporaryDirectory(prefix="jaxllm-")
        self._files = itertools.count()

    def ask(self, **question: Any) -> Any:
        print(json.dumps(question), file=self._questions, flush=True)
        return json.loads(self._answers.readline())

    def new_file(self) -> Path:
        return Path(self._folder.name, str(next(self._files)))


@functools.cache
def zygote() -> Zygote:
    """One for this process: a new process, or what a fork has made of itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.zygote"], cwd=REPOSITORY, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin and process.stdout
    return Zygote(process.stdin, process.stdout)


class Process:
    """`python -m MODULE ARGUMENTS` in a fork, with what the tests use of subprocess.Popen.

    Both of its streams are appended to the file `output` if there is one; it holds the file `lock`
    if there is one, with its process id.
    """

    def __init__(
        self, command: list[str], cwd: Path, environment: dict[str, str],
        output: Path | None = None, lock: Path | None = None,
    ) -> None:  # fmt: skip
        self._output = output or zygote().new_file()
        self._errors = output or zygote().new_file()
        self.returncode: int | None = None
        self.pid: int = zygote().ask(
            start=command, cwd=str(cwd), environment=environment,
            output=str(self._output), errors=str(self._errors), lock=lock and str(lock),
        )  # fmt: skip

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = zygote().ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < end, f"process {self.pid} has not ended"
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Its output and its errors, once it has ended; with a file for both, all as output."""
        self.wait(timeout)
        both = self._errors == self._output
        return self._output.read_text(), "" if both else self._errors.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    command: list[str], cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS` in a fork, to its end."""
    process = Process(command, cwd, environment)
    out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.wait(), out, err)


def begin(name: str, command: Sequence[str], log: Path) -> Process:
    """What `launchers.begin` does, in a fork."""
    from jaxllm.suites import launchers

    with launchers._lock(name) as file:
        lock = Path(file.name)
    assert command[:3] == [sys.executable, "-m", "jaxllm.train"]
    return Process([*command[2:]], Path.cwd(), dict(os.environ), log, lock)


def serve() -> None:
    import gc

    _import_everything()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    _answer(sys.stdin, os.fdopen(os.dup(1), "w"))


def _answer(questions: IO[str], answers: IO[str]) -> None:
    for line in questions:
        question = json.loads(line)
        if "start" in question:
            answer = os.fork()
            if not answer:
                _become(question)
        else:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # an ordinary end takes seconds


def _import_everything() -> None:
    """Import every room of jaxllm, and the libraries that they load where they use them."""
    import importlib
    from pkgutil import walk_packages

    import jaxllm
    from jaxllm import runtime
    from jaxllm.errors import UserError
    from jaxllm.report import page

    runtime.import_seqio()
    for module in walk_packages(jaxllm.__path__, "jaxllm."):
        if module.name.count(".") > 1:  # the commands themselves run
            with contextlib.suppress(ImportError, UserError):
                importlib.import_module(module.name)
    # Not in this process: it starts threads, which forks would miss.
    program = "import vl_convert; print(vl_convert.javascript_bundle(), end='')"
    libraries = subprocess.check_output([sys.executable, "-c", program], text=True)
    page.javascript_libraries = lambda: libraries


def _fork_of_its_own() -> Zygote:
    """What starts the runs of this fork, as clean as it is now."""
    (questions, ask), (hear, answers) = os.pipe(), os.pipe()
    if not os.fork():
        os.close(ask)  # so that it ends with this one
        _answer(os.fdopen(questions), os.fdopen(answers, "w"))
    os.close(questions)
    os.close(answers)
    return Zygote(os.fdopen(ask, "w"), os.fdopen(hear))


def _become(question: dict[str, Any]) -> None:
    """Turn a fork into the command."""
    global zygote
    import fcntl
    import runpy
    import threading
    import traceback

    from jaxllm.report import items
    from jaxllm.suites import launchers

    if question["start"][0] == "jaxllm.suite":
        zygote = functools.cache(_fork_of_its_own)
        zygote()
        launchers.begin = begin
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which nohup and `&` ignore
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(question["cwd"])
    _set_environment(question["environment"])
    sys.path[0] = question["cwd"]
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    files = (os.devnull, question["output"], question["errors"])
    for descriptor, file in enumerate(files):
        opened = os.open(file, flags if descriptor else os.O_RDONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = open(0)  # noqa: SIM115
    if question["lock"]:
        lock = open(question["lock"], "a")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        print(os.getpid(), end="", file=lock, flush=True)
    sys.stdout.reconfigure(line_buffering=True)
    if NO_REPORT.items() <= question["environment"].items():
        items.items = lambda *_, **__: []
    module, *sys.argv[1:] = question["start"]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        import atexit

        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def _set_environment(environment: Mapping[str, str]) -> None:
    """Set all of it, and the options that JAX has read from it when it was imported."""
    import jax

    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    for name, text in environment.items():
        option = name.lower()
        if before.get(name) != text and option in jax.config.values:
            kind = type(jax.config.values[option])
            value = {bool: lambda t: bool(int(t)), float: float, int: int}.get(kind, str)(text)
            jax.config.update(option, value)


if __name__ == "__main__":
    serve()
