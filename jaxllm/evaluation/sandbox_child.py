"""Run one program in isolation; the script of the processes that `sandbox.py` starts.

Standard input is a JSON object: `program`, `token`, `scratch`, `isolate` and the fields of
`sandbox.Limits`. The output is a line "isolated" or "restricted", and then `token` if the program
ran to its end, or else the exception that ended it. A program that exits (`sys.exit`, `os._exit`)
adds nothing. If isolation is not available, the output is a line "refused" and the reason, and
nothing runs.

isolated: own namespaces for users, network, processes and mounts: no network, no visible other
  processes, no devices except null, zero and random, no writable files except in a small tmpfs,
  the scratch directory; no capabilities; and by a seccomp filter no sockets (those of UNIX are
  files, out of the reach of namespaces) and few ways deeper into the kernel (`FORBIDDEN`). Its
  child processes die with it.
restricted: no isolation, only by an explicit setting. A Python audit hook blocks sockets,
  processes, foreign functions, directories, and files outside the scratch directory; a resource
  limit blocks other processes and threads. It stops accidents, not attacks.

In both modes, root's programs run as an unprivileged user; if Python is installed in a directory
private to root, nothing else of that directory is visible to them. Program and tests share a
process, so that a program written to deceive (one that reads `token` from the stack, or returns
objects that equal everything) passes.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys

USERS, NETWORK, PROCESSES, MOUNTS, IPC = 0x10000000, 0x40000000, 0x20000000, 0x00020000, 0x08000000
PRIVATE_BELOW, SAFE = 0x4000 | 0x40000, 0x2 | 0x4  # MS_REC | MS_PRIVATE, MS_NOSUID | MS_NODEV
BIND, BIND_BELOW = 0x1000, 0x1000 | 0x4000
MOUNT_SETATTR, BELOW, READ_ONLY, NO_SETUID, NO_DEVICES = 442, 0x8000, 0x1, 0x2, 0x4
CAPABILITIES_V3, NOBODY = 0x20080522, 65534
DIE_WITH_PARENT, OWN_PROC, NO_NEW_PRIVILEGES, DROP_CAPABILITY = 1, 4, 38, 24  # of prctl
SET_SECCOMP, FILTER, ALLOW, DENY = 22, 2, 0x7FFF0000, 0x00050001  # DENY: with EPERM
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # of classic BPF
# Machine -> its AUDIT_ARCH, and its numbers of socket, ptrace, unshare, add_key, request_key,
# keyctl, perf_event_open, bpf, userfaultfd and io_uring_setup (which can open sockets).
FORBIDDEN = {
    "x86_64": (0xC000003E, (41, 101, 272, 248, 249, 250, 298, 321, 323, 425)),
    "aarch64": (0xC00000B7, (198, 117, 97, 217, 218, 219, 241, 280, 282, 425)),
}
DEVICES = ("null", "zero", "full", "random", "urandom")

REFUSED = (
    "socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system",
    "os.kill", "os.mkdir", "pty.", "ctypes.dlsym",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr", "shutil.",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Read the job, isolate this process, run the program."""
    job = json.load(sys.stdin)
    os.umask(0o022)
    report, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    isolated = bool(job["isolate"])
    try:
        if os.geteuid() == 0:
            _become_nobody(job["scratch"])
        if isolated:
            _unshare()
            _wait_for_child()
            _libc().prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
            _close_off(job)
            _wait_for_child()  # PID 1 of a namespace ignores default-action signals
        os.chdir(job["scratch"])
        _give_up_rights()
        if isolated:
            _filter_system_calls()
    except (OSError, AttributeError, KeyError) as error:  # not Linux, or another machine
        os.write(report, f"refused\n{error}".encode())
        os._exit(0)
    os.write(report, b"isolated\n" if isolated else b"restricted\n")
    _limit(job, processes=job["processes"] if isolated else 1)  # else NPROC counts per user
    if not isolated:
        _restrict(os.path.realpath(job["scratch"]))
    _run(job["program"], job["token"], report)


def _run(program: str, token: str, report: int) -> None:
    try:
        exec(compile(program, "<program>", "exec"), {})
        outcome = token
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"[:300]
    os.write(report, outcome.encode(errors="replace"))
    os._exit(0)


def _wait_for_child() -> None:
    """Fork and continue in the child; the parent waits for it and exits with its status."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(128 - code if code < 0 else code)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(failed: int, what: str) -> None:
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    given = [text.encode() for text in (source, target, kind, data)]
    failed = _libc().mount(*given[:3], ctypes.c_ulong(flags), given[3])
    _check(failed, f"mounting {target}")


def _set_mount(target: str, below: int = 0, on: int = 0, off: int = 0) -> None:
    attributes = struct.pack("QQQQ", on, off, 0, 0)
    size = ctypes.c_size_t(len(attributes))
    failed = _libc().syscall(MOUNT_SETATTR, -100, target.encode(), below, attributes, size)
    _check(failed, f"changing the mount {target}")


def _become_nobody(scratch: str) -> None:
    """Drop root permanently: in a user namespace alone, root still owns its files."""
    needed = {sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path), scratch}
    needed |= {os.path.realpath(path) for path in needed}
    os.chown(scratch, NOBODY, NOBODY)
    hidden = {closed for path in needed if (closed := _closed(path))}
    if hidden:
        _show_within(hidden, needed)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _libc().prctl(OWN_PROC, 1, 0, 0, 0)
    for path in sorted(needed):
        if not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(f"programs of root run as user {NOBODY}, who cannot read {path}")


def _closed(path: str) -> str | None:
    """The topmost parent directory of `path` that other users cannot traverse."""
    parts = path.split(os.sep)
    for end in range(2, len(parts)):
        above = os.sep.join(parts[:end])
        if not os.stat(above).st_mode & 0o001:
            return above
    return None


def _show_within(hidden: set[str], needed: set[str]) -> None:
    """Mount an empty directory over each of `hidden`, and bind-mount only `needed` into it."""
    _check(_libc().unshare(MOUNTS), "leaving the mounts")
    _mount("", "/", "", PRIVATE_BELOW)
    opened = {
        path: os.open(path, os.O_PATH)
        for path in sorted(needed)
        if _closed(path) and not any(path.startswith(other + os.sep) for other in needed)
    }
    for directory in hidden:
        _mount("tmpfs", directory, "tmpfs", SAFE, "size=64k,mode=755")
    for path, descriptor in opened.items():
        os.makedirs(path, mode=0o755, exist_ok=True)
        _mount(f"/proc/self/fd/{descriptor}", path, "", BIND_BELOW)
        os.close(descriptor)


def _unshare() -> None:
    """Move this process into new namespaces, with its user and group mapped to themselves."""
    user, group = os.geteuid(), os.getegid()
    _check(_libc().unshare(USERS | NETWORK | PROCESSES | MOUNTS | IPC), "leaving the namespaces")
    maps = {"uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, text in ({"setgroups": "deny"} | maps).items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _close_off(job: dict) -> None:
    """Make all files outside the scratch directory read-only, and hide /dev, /proc and /run."""
    size = f"size={job['file_bytes']},nr_inodes={job['files']}"
    _mount("", "/", "", PRIVATE_BELOW)
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    _mount("tmpfs", "/dev", "tmpfs", SAFE, "size=64k,mode=755")
    for name, opened in devices.items():
        os.close(os.open(f"/dev/{name}", os.O_CREAT, 0o666))
        _mount(f"/proc/self/fd/{opened}", f"/dev/{name}", "", BIND)
        os.close(opened)
    _set_mount("/", BELOW, on=READ_ONLY | NO_SETUID | NO_DEVICES)
    for name in DEVICES:
        _set_mount(f"/dev/{name}", off=NO_DEVICES)
    _mount("tmpfs", "/proc", "tmpfs", SAFE, "size=4k")
    _mount("tmpfs", "/run", "tmpfs", SAFE, "size=4k")
    _mount("tmpfs", job["scratch"], "tmpfs", SAFE, size)


def _give_up_rights() -> None:
    """Drop all capabilities, and forbid gaining privileges through execve."""
    libc = _libc()
    _check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "giving up new privileges")
    for capability in range(64):
        libc.prctl(DROP_CAPABILITY, capability, 0, 0, 0)
    _check(libc.capset(struct.pack("Ii", CAPABILITIES_V3, 0), bytes(24)), "giving up capabilities")


def _filter_system_calls() -> None:
    """Let the `FORBIDDEN` system calls, and those of another architecture, fail with EPERM."""
    architecture, numbers = FORBIDDEN[os.uname().machine]
    deny = len(numbers) + 5  # index of the last instruction; jumps count from the next one
    filters = [(LOAD, 0, 0, 4), (IF_EQUAL, 0, deny - 2, architecture), (LOAD, 0, 0, 0)]
    filters += [(IF_AT_LEAST, deny - 4, 0, 1 << 30)]  # x32, whose numbers differ
    filters += [(IF_EQUAL, deny - at, 0, number) for at, number in enumerate(numbers, 5)]
    filters += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in filters))
    program = struct.pack("HxxxxxxP", len(filters), ctypes.addressof(code))
    failed = _libc().prctl(SET_SECCOMP, FILTER, program, 0, 0)
    _check(failed, "filtering system calls")


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
            highest = value + 1  # one more second: SIGXCPU comes before SIGKILL
        resource.setrlimit(limit, (min(value, highest), highest))


def _restrict(scratch: str) -> None:
    def inside(path: object) -> bool:
        real = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        return real == scratch or real.startswith(scratch + os.sep)

    def allowed(event: str, args: tuple) -> bool:
        if event == "ctypes.dlopen":  # None: Python's own handle
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
