"""Programs in the sandbox: real processes that try each wall, with namespaces and without."""

import os
import re
import socket
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.evaluation import sandbox, sandbox_child
from jaxllm.evaluation.sandbox import Limits

SHORT = Limits(cpu_seconds=1, wall_seconds=200.0, memory_bytes=1 << 28)
WALLS = {"namespaces": True, "guard": False}


def can_isolate() -> bool:
    try:
        return sandbox.run("pass", isolate=True).passed
    except UserError:
        return False


CAN_ISOLATE = can_isolate()
needs_namespaces = pytest.mark.skipif(not CAN_ISOLATE, reason="the kernel allows no namespaces")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="about root's rights")


@pytest.fixture(params=WALLS)
def isolate(request):
    if WALLS[request.param] and not CAN_ISOLATE:
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


def test_unix_sockets_are_out_of_reach(run):
    """They are files, which neither a network namespace nor a read-only mount takes away."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as server:
        os.chmod(directory, 0o755)
        path = Path(directory, "socket")
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        connect = f"socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        assert run(f"import socket\n{connect}").reason.startswith("PermissionError")


@needs_namespaces
def test_system_calls_into_the_kernel_are_filtered():
    _, numbers = sandbox_child.FORBIDDEN[os.uname().machine]
    program = f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for number in {numbers}:
            assert libc.syscall(number, -1, -1, -1, -1, -1) == -1 and ctypes.get_errno() == 1
            ctypes.set_errno(0)
        assert libc.syscall(1 << 30 | 39) == -1 and ctypes.get_errno() == 1
    """
    outcome = sandbox.run(textwrap.dedent(program), SHORT, isolate=True)
    assert outcome.passed, outcome.reason


def test_a_machine_without_a_filter_is_refused(monkeypatch, tmp_path):
    other = tmp_path / "sandbox_child.py"
    text = Path(sandbox_child.__file__).read_text()
    other.write_text(text.replace("os.uname().machine", "'other'"))
    monkeypatch.setattr(sandbox, "_CHILD", other)
    with pytest.raises(UserError, match="cannot be isolated here"):
        sandbox.run("pass", isolate=True)


def test_deep_directories_do_not_outlive_a_program(run):
    deep = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')"
    assert re.match("OSError.*No space|PermissionError", run(deep).reason)


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


@needs_root
def test_programs_of_root_have_none_of_its_rights(run):
    """Seen by what root's own files let them do, whatever number they are told."""
    names = "raise ValueError((os.getresuid(), os.getresgid(), os.getgroups()))"
    assert str(((65534,) * 3, (65534,) * 3, [])) in run(f"import os\n{names}").reason
    with tempfile.NamedTemporaryFile() as file:  # 0600, of root
        outcome = run(f"open({file.name!r}).read()")
    assert outcome.reason.startswith("PermissionError")
    assert "Error: [Errno" in run("import os\nos.setuid(0)").reason
    known = ("kmsg", "fuse", "loop-control")
    for path in Path("/dev").iterdir():
        if not path.is_block_device() and path.name not in known:
            continue
        program = f"import os\nos.close(os.open({str(path)!r}, os.O_WRONLY))"
        assert re.match("FileNotFound|Permission", run(program).reason), path


@needs_namespaces
def test_there_are_no_devices_but_harmless_ones():
    def run(program):
        return sandbox.run(program, SHORT, isolate=True)

    listed = run("import os\nraise ValueError(sorted(os.listdir('/dev')))").reason
    assert listed == "ValueError: ['full', 'null', 'random', 'urandom', 'zero']"
    assert run("assert len(open('/dev/urandom', 'rb').read(8)) == 8").passed
    assert run("assert open('/dev/zero', 'rb').read(2) == bytes(2)").passed
    assert run("open('/dev/null', 'w').write('x')").passed
    for change in ("os.mknod('/dev/mine')", "os.mknod('sda', 0o60600, os.makedev(8, 0))",
                   "os.remove('/dev/null')"):  # fmt: skip
        assert re.match("PermissionError|OSError", run(f"import os\n{change}").reason), change
    assert run("import ctypes\nassert ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 1").passed


@needs_root
@needs_namespaces
def test_of_root_s_own_directories_python_alone_is_seen():
    walls = {
        wall for path in sys.path if os.path.isdir(path) and (wall := sandbox_child._closed(path))
    }
    before = os.umask(0o077)
    try:
        assert sandbox.run("import decimal, numpy", Limits(), isolate=True).passed
    finally:
        os.umask(before)
    for wall in walls:
        with tempfile.NamedTemporaryFile(dir=wall) as file:
            outcome = sandbox.run(f"open({file.name!r})", SHORT, isolate=True)
        assert outcome.reason.startswith("FileNotFoundError")


@pytest.fixture
def without_namespaces(monkeypatch, tmp_path):
    """A kernel that refuses to unshare, as a container's filter does."""
    broken = tmp_path / "sandbox_child.py"
    text = Path(sandbox_child.__file__).read_text()
    broken.write_text(text.replace("USERS | NETWORK |", "-1 |"))
    assert broken.read_text() != text
    monkeypatch.setattr(sandbox, "_CHILD", broken)


def test_nothing_runs_where_no_walls_can_be_built(without_namespaces):
    with pytest.raises(UserError, match=r"cannot be isolated here .*run_code='unisolated'.*Inva"):
        sandbox.run("pass")
    with pytest.raises(UserError, match="run_code='unisolated'"):
        sandbox.choose(isolate=True)


def test_less_than_isolation_is_for_who_asks_for_it(without_namespaces):
    try:
        sandbox.choose(isolate=False)
        outcome = sandbox.run("pass")
        assert outcome.passed and not outcome.isolated
        with pytest.raises(UserError):
            sandbox.choose(isolate=True)
        with pytest.raises(UserError):  # what was allowed once is not allowed for good
            sandbox.run("pass")
    finally:
        sandbox._chosen = True


@needs_root
def test_root_is_refused_where_its_rights_cannot_be_given_up(monkeypatch, tmp_path):
    broken = tmp_path / "sandbox_child.py"
    text = Path(sandbox_child.__file__).read_text()
    call = "    _libc().prctl(OWN_PROC, 1, 0, 0, 0)\n"
    assert call in text
    broken.write_text(text.replace(call, f"{call}    needed.add('/proc/1/fd')\n"))
    monkeypatch.setattr(sandbox, "_CHILD", broken)
    for isolate in (True, False):
        with pytest.raises(UserError, match="programs of root run as user 65534, who cannot read"):
            sandbox.run("pass", isolate=isolate)
