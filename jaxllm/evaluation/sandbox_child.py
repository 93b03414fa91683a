"""One program behind walls. `sandbox.py` starts this file as a process of its own.

Standard input is a JSON object: `program`, `token`, `scratch`, `isolate` and the fields of
`sandbox.Limits`. What comes out is "isolated" or "guarded" and a line end, and then `token` if the
program ran to its end, or else the exception that ended it. A program that leaves by itself
(`sys.exit`, `os._exit`) leaves nothing.

isolated: namespaces of its own for users, network, processes and mounts, so that there is no
  network, no other process to see and no file to change but in a small tmpfs, the scratch
  directory; and no capabilities. All that it started dies with it.
guarded: where the kernel does not allow these, a Python audit hook refuses sockets, processes,
  foreign functions, and files outside the scratch directory; and the kernel starts no other
  process or thread. It stops what goes astray, not what sets out to get round it.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys

USERS, NETWORK, PROCESSES, MOUNTS, IPC = 0x10000000, 0x40000000, 0x20000000, 0x00020000, 0x08000000
PRIVATE_BELOW, SAFE = 0x4000 | 0x40000, 0x2 | 0x4  # MS_REC | MS_PRIVATE, MS_NOSUID | MS_NODEV
MOUNT_SETATTR, BELOW, READ_ONLY = 442, 0x8000, 0x1
CAPABILITIES_V3, NOBODY = 0x20080522, 65534
DIE_WITH_PARENT, NO_NEW_PRIVILEGES, DROP_CAPABILITY = 1, 38, 24  # of prctl

REFUSED = (
    "socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system",
    "os.kill", "pty.", "ctypes.dlsym",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr", "shutil.",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Reads what to run, builds the walls, runs it."""
    job = json.load(sys.stdin)
    report, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if os.geteuid() == 0:  # the limit on processes does not hold for root's own
        os.setresuid(NOBODY, 0, 0)
    isolated = bool(job["isolate"]) and _unshare()
    if isolated:
        _wait_for_child()
        _libc().prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        isolated = _close_off(job)
        _wait_for_child()  # the first process of a namespace heeds no signals
    os.chdir(job["scratch"])
    os.write(report, b"isolated\n" if isolated else b"guarded\n")
    _give_up_rights()
    _limit(job, processes=job["processes"] if isolated else 1)  # there it counts all of the user's
    if not isolated:
        _guard(os.path.realpath(job["scratch"]))
    _run(job["program"], job["token"], report)


def _run(program: str, token: str, report: int) -> None:
    try:
        exec(compile(program, "<program>", "exec"), {})
        said = token
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:300]
    os.write(report, said.encode(errors="replace"))
    os._exit(0)


def _wait_for_child() -> None:
    """Goes on in a new process; this one waits for its end, and ends as it did."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(128 - code if code < 0 else code)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unshare() -> bool:
    """Whether this process could leave the namespaces that it was born into."""
    user, group = os.geteuid(), os.getegid()
    try:
        if _libc().unshare(USERS | NETWORK | PROCESSES | MOUNTS | IPC):
            return False
        maps = {"uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for name, text in ({"setgroups": "deny"} | maps).items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except (OSError, AttributeError):
        return False
    return True


def _close_off(job: dict) -> bool:
    """Leaves no file to write but in the scratch directory, and nothing to see of the system."""
    libc, scratch = _libc(), job["scratch"].encode()
    size = f"size={job['file_bytes']},nr_inodes={job['files']}".encode()
    read_only = struct.pack("QQQQ", READ_ONLY, 0, 0, 0)
    failed = (
        libc.mount(b"", b"/", b"", PRIVATE_BELOW, None)
        or libc.syscall(MOUNT_SETATTR, -100, b"/", BELOW, read_only, len(read_only))
        or libc.mount(b"tmpfs", b"/proc", b"tmpfs", SAFE, b"size=4k")
        or libc.mount(b"tmpfs", b"/run", b"tmpfs", SAFE, b"size=4k")
        or libc.mount(b"tmpfs", scratch, b"tmpfs", SAFE, size)
    )
    return not failed


def _give_up_rights() -> None:
    """What root may do beyond its own files, and what a program could gain by starting others."""
    libc = _libc()
    with contextlib.suppress(AttributeError):  # not Linux
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        for capability in range(64):
            libc.prctl(DROP_CAPABILITY, capability, 0, 0, 0)
        libc.capset(struct.pack("Ii", CAPABILITIES_V3, 0), bytes(24))


def _limit(job: dict, processes: int) -> None:
    limits = {
        resource.RLIMIT_CPU: job["cpu_seconds"],
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NOFILE: job["files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: processes,
    }
    for limit, value in limits.items():
        highest = resource.getrlimit(limit)[1]
        if highest == resource.RLIM_INFINITY or highest > value:
            highest = value + 1  # of seconds: SIGXCPU comes before SIGKILL
        resource.setrlimit(limit, (min(value, highest), highest))


def _guard(scratch: str) -> None:
    def inside(path: object) -> bool:
        whole = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        return whole == scratch or whole.startswith(scratch + os.sep)

    def allowed(event: str, args: tuple) -> bool:
        if event == "ctypes.dlopen":  # None is what Python itself opens
            return args[0] is None
        if event.startswith(CHANGES):
            return all(inside(arg) for arg in args if isinstance(arg, str | bytes | os.PathLike))
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            hidden = os.path.realpath(os.fsdecode(args[0])).startswith(("/proc/", "/sys/", "/run/"))
            return not hidden and (not args[2] & WRITES or inside(args[0]))
        return not event.startswith(REFUSED)

    def hook(event: str, args: tuple) -> None:
        if not allowed(event, args):
            raise PermissionError(f"{event} is refused")

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
