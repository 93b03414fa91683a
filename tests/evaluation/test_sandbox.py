"""Programs in the sandbox: real processes that try each wall, with namespaces and without."""

import os
import re
import socket
import textwrap
import time
from pathlib import Path

import pytest

from jaxllm.evaluation import sandbox
from jaxllm.evaluation.sandbox import Limits

SHORT = Limits(cpu_seconds=1, wall_seconds=200.0, memory_bytes=1 << 28)
WALLS = {"namespaces": True, "guard": False}


@pytest.fixture(params=WALLS, autouse=True)
def isolate(request):
    if WALLS[request.param] and not sandbox.isolated():
        pytest.skip("the kernel allows no namespaces here")
    return WALLS[request.param]


@pytest.fixture
def run(isolate):
    def run(program, limits=SHORT):
        outcome = sandbox.run(textwrap.dedent(program), limits, isolate)
        assert outcome.isolated == isolate
        return outcome

    return run


def test_a_program_passes_by_reaching_its_end(run):
    assert run("x = 1\nassert x == 1\nprint('done')").passed
    assert run("import numpy\nassert numpy.ones(3).sum() == 3", Limits()).passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'not so'", "AssertionError: not so"),
        ("def f(:", "SyntaxError"),
        ("import sys\nprint('all tests passed')\nsys.exit(0)", "SystemExit: 0"),
        (
            "import os\nprint('all tests passed')\nos._exit(0)",
            r"left before its end \(exit status 0",
        ),
        ("import os\nos._exit(7)", r"left before its end \(exit status 7"),
        ("quit()", "NameError|SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os\nos.abort()", r"left before its end \(exit status 134"),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", "left before its end"),
        ("def f(): f()\nf()", "RecursionError"),
    ],
)
def test_no_other_way_out_counts(run, program, reason):
    outcome = run(f"{program}\n")
    assert not outcome.passed
    assert re.search(reason, outcome.reason), outcome.reason


def test_an_infinite_loop_ends_with_its_time(run):
    assert run("while True: pass").reason == "more than 1 s of CPU time"
    assert run("import time\ntime.sleep(99)", Limits(wall_seconds=2)).reason == "longer than 2 s"
    ignores = "import signal\nfor n in range(1, 64):\n    try: signal.signal(n, signal.SIG_IGN)\n" \
        "    except (OSError, ValueError): pass\nwhile True: pass"  # fmt: skip
    assert not run(ignores).passed


def test_memory_is_limited(run):
    assert run("x = bytearray(1 << 27)").passed
    assert run("x = bytearray(1 << 29)").reason.startswith("MemoryError")
    assert not run("x = []\nwhile True: x.append(bytes(1 << 20))").passed


def test_files_are_limited_in_size_and_number(run, isolate):
    assert run("open('small', 'wb').write(bytes(1 << 20))").passed
    assert "too large" in run("open('big', 'wb').write(bytes(1 << 25))").reason
    assert "Too many open files" in run("x = [open(str(n), 'w') for n in range(99)]").reason
    if isolate:
        many = run("for n in range(99):\n    with open(str(n), 'w'): pass")
        assert "No space left" in many.reason
        several = "for n in range(4):\n    open(str(n), 'wb').write(bytes(1 << 23))"
        assert "No space left" in run(several).reason


def test_a_fork_bomb_is_bounded(run, isolate):
    """Processes that stay; how many could start stands in the exception."""
    outcome = run(
        """
        import os, time
        for n in range(99):
            try:
                child = os.fork()
            except OSError:
                break
            if not child:
                time.sleep(20)
        raise ValueError(f"started {n}")
        """
    )
    assert not outcome.passed
    if isolate:
        assert int(outcome.reason.split("started ")[1]) < Limits.processes
    else:
        assert "started 0" in outcome.reason  # a PermissionError, which is an OSError
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert not run(bomb, Limits(cpu_seconds=1, wall_seconds=5)).passed


def test_threads_count_as_processes(run, isolate):
    program = """
        import threading, time
        threads = [threading.Thread(target=time.sleep, args=(5,), daemon=True) for _ in range({})]
        for thread in threads: thread.start()
    """
    assert run(program.format(4)).passed == isolate
    assert "can't start new thread" in run(program.format(40)).reason


def test_processes_cannot_start_behind_the_back_of_python(run, isolate):
    """multiprocessing's spawn calls the kernel without telling the audit hook."""
    program = """
        from multiprocessing import util
        import os, sys
        pid = util.spawnv_passfds(sys.executable.encode(), [b"python", b"-c", b"pass"], [])
        assert os.waitpid(pid, 0)[1] == 0
    """
    assert run(program).passed == isolate


def test_there_is_no_network(run, isolate):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        outcome = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))")
        assert not outcome.passed
        assert ("is refused" in outcome.reason) != isolate
        with pytest.raises(TimeoutError):
            server.accept()


def test_nothing_of_ours_can_be_read_or_changed(run, isolate, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLLM_TEST_SECRET", "hush")
    seen = run("import os\nraise ValueError(sorted(os.environ))").reason
    assert "PATH" in seen and "SECRET" not in seen
    for pid in (os.getpid(), "self"):
        outcome = run(f"raise ValueError(open('/proc/{pid}/environ').read())")
        assert outcome.reason.startswith("FileNotFound" if isolate else "PermissionError")
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for program in (
        f"open({str(kept)!r}, 'w')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.rename({str(kept)!r}, 'mine')",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        f"import os\nos.kill({os.getpid()}, 9)",
    ):
        assert not run(program).passed
    assert kept.read_text() == "as it was"


def test_a_child_that_went_its_own_way_is_dead_afterwards(run, isolate):
    """A mark in the command line of the child shows whether it lives."""
    mark = f"jaxllm-daemon-{os.getpid()}"
    outcome = run(
        f"""
        import subprocess, sys
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)", {mark!r}], start_new_session=True
        )
        """
    )
    assert outcome.passed == isolate
    deadline = time.monotonic() + 10
    while _running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _running(mark)


def _running(mark):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(mark in path.read_text())
        except OSError:
            continue
    return any(found)


def test_the_scratch_directory_is_empty_and_goes_away(run):
    wrote = run("import os\nassert os.listdir() == []\nopen('x', 'w').close()\n"
                "raise ValueError(os.getcwd())")  # fmt: skip
    scratch = Path(wrote.reason.removeprefix("ValueError: "))
    assert scratch.is_absolute() and not scratch.exists()


def test_what_it_prints_is_bounded_and_the_same_every_time(run):
    assert run(
        "import sys\nfor _ in range(99): print('x' * 10**6)\nsys.stderr.write('y' * 10**7)"
    ).passed
    assert len(run("raise ValueError('x' * 10**6)").reason) <= 300
    order = "raise ValueError(list({'a', 'b', 'c', 'd', 'e'}))"
    assert run(order).reason == run(order).reason
