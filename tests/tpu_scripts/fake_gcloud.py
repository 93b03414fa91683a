"""A cloud in a folder: `gcloud` for tests, with hosts that are home directories.

FAKE_CLOUD is the folder. `states` holds what the queued resource answers, a line for each time that
it is asked; the last one stays. Creating makes two hosts for every node, and a node is taken away,
with what runs and lies there, by deleting or by the state SUSPENDING. `ssh` and `scp` really run
and copy, in the hosts' homes, on all hosts at once. Of this process's environment a host has
nothing: `image/bin` goes before the system's programs, `environment.json` says what else is set
there, and a few variables who is who, as on a TPU. Every call is a line of `calls`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
WORKERS = 2


def flag(name: str, default: str = "") -> str:
    values = [a.split("=", 1)[1] for a in sys.argv if a.startswith(f"--{name}=")]
    return values[0] if values else default


def homes(node: str, worker: str) -> list[Path]:
    chosen = range(WORKERS) if worker == "all" else [int(worker)]
    found = [CLOUD / "hosts" / f"{node}.{i}" for i in chosen]
    if not all(home.is_dir() for home in found):
        sys.exit(f"ERROR: no such host: {node}")
    return found


def take_away_after_a_step() -> None:
    end = time.monotonic() + 60
    while not (CLOUD / "bucket" / "step").exists() and time.monotonic() < end:
        time.sleep(0.05)
    take_away()


def take_away() -> None:
    for home in (CLOUD / "hosts").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.killpg(int((home / "jaxllm" / "run.pid").read_text()), signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)  # what is being killed may still write


def create(name: str) -> None:
    resource = CLOUD / "resources" / name
    if resource.exists():
        sys.exit(f"ERROR: (gcloud) ALREADY_EXISTS: Resource '{name}' already exists")
    resource.parent.mkdir(exist_ok=True)
    resource.touch()
    nodes = [flag("node-id")]
    if flag("node-count"):
        nodes = [f"{flag('node-prefix')}-{i}" for i in range(int(flag("node-count")))]
    for node in nodes:
        for worker in range(WORKERS):
            (CLOUD / "hosts" / f"{node}.{worker}").mkdir(parents=True)


def delete(name: str) -> None:
    resource = CLOUD / "resources" / name
    if not resource.exists():
        sys.exit(f"ERROR: (gcloud) NOT_FOUND: Resource '{name}' was not found")
    resource.unlink()
    take_away()


def describe(name: str) -> None:
    states = (CLOUD / "states").read_text().split()
    if len(states) > 1:
        (CLOUD / "states").write_text("\n".join(states[1:]))
    if states[0] == "SUSPENDING":
        take_away_after_a_step()
    if states[0] == "NONE":
        sys.exit(f"ERROR: (gcloud) NOT_FOUND: Resource '{name}' was not found")
    print(states[0])


def host_environment(home: Path) -> dict[str, str]:
    """What a command finds on the host, which has the name NODE.WORKER."""
    names = sorted(each.name for each in (CLOUD / "hosts").iterdir())
    set_there = CLOUD / "environment.json"
    return {
        "PATH": f"{CLOUD}/image/bin:/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TPU_WORKER_ID": str(names.index(home.name)),  # as on GKE: without a metadata server
        "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * len(names)),
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        **(json.loads(set_there.read_text()) if set_there.exists() else {}),
    }


def ssh(node: str) -> None:
    runs = [
        subprocess.Popen(["bash", "-c", flag("command")], cwd=home, env=host_environment(home))
        for home in homes(node, flag("worker", "0"))
    ]
    sys.exit(max(abs(run.wait()) for run in runs))


def main() -> None:
    with (CLOUD / "calls").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    match sys.argv[1:5]:
        case ["compute", "tpus", "queued-resources", "create"]:
            create(sys.argv[5])
        case ["compute", "tpus", "queued-resources", "describe"]:
            describe(sys.argv[5])
        case ["compute", "tpus", "queued-resources", "delete"]:
            delete(sys.argv[5])
        case ["compute", "tpus", "tpu-vm", "describe"]:
            if not any((CLOUD / "hosts").glob(f"{sys.argv[5]}.*")):
                sys.exit(f"ERROR: (gcloud) NOT_FOUND: Resource '{sys.argv[5]}' was not found")
            lost = CLOUD / "lost"
            print("PREEMPTED" if lost.exists() else "READY")
            lost.unlink(missing_ok=True)
        case ["compute", "tpus", "tpu-vm", "ssh"]:
            ssh(sys.argv[5])
        case ["compute", "tpus", "tpu-vm", "scp"]:
            for home in homes(sys.argv[6].rstrip(":"), flag("worker", "0")):
                shutil.copy(sys.argv[5], home)
        case _:
            sys.exit(f"ERROR: unknown command {sys.argv[1:]}")


if __name__ == "__main__":
    main()
