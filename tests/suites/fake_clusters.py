"""Clusters in a folder: the commands of Slurm and xpk for tests, called by the name of the program.

FAKE_CLUSTER is the folder; `jobs/ID` is a job, and `calls` has a line for every call. A job really
runs, here and in the background, and signals go to its steps but not to its batch script, as
Slurm's do. A container of GKE begins in the folder `image`.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

CLUSTER = Path(os.environ["FAKE_CLUSTER"])
JOBS = CLUSTER / "jobs"


def flag(name: str, default: str = "") -> str:
    return next((a.split("=", 1)[1] for a in sys.argv if a.startswith(f"--{name}=")), default)


def jobs(name: str) -> dict[str, dict]:
    found = {path.name: json.loads(path.read_text()) for path in JOBS.iterdir()}
    return {number: job for number, job in found.items() if job["name"] == name}


def save(number: str, **job: object) -> None:
    new = CLUSTER / f"job-{number}-{os.getpid()}"
    new.write_text(json.dumps(job))
    new.rename(JOBS / number)


def begin(name: str, script: str, folder: str) -> str:
    number = str(len(list(JOBS.iterdir())) + 1)
    save(number, name=name, state="RUNNING", script=script, folder=folder, pid=0)
    subprocess.Popen(
        [sys.executable, __file__, "supervise", number], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return number


def supervise(number: str) -> None:
    job = json.loads((JOBS / number).read_text())
    here = {"SLURM_JOB_ID": number, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
            "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}  # fmt: skip
    script = CLUSTER / f"script-{number}"  # a file, whose last command bash starts as its child
    script.write_text(job["script"])
    again = True
    while again:
        run = subprocess.Popen(["bash", script], cwd=job["folder"], env=os.environ | here)
        save(number, **job | {"pid": run.pid})
        code = run.wait()
        again = (CLUSTER / f"requeue-{number}").exists()
        (CLUSTER / f"requeue-{number}").unlink(missing_ok=True)
    save(number, **job | {"state": "FAILED" if code else "COMPLETED"})


def send(job: dict, number: int, to_script: bool) -> None:
    while not job["pid"]:
        time.sleep(0.05)
        job = next(iter(jobs(job["name"]).values()))
    script = psutil.Process(job["pid"])
    for process in [*[script] * to_script, *script.children(recursive=True) * (not to_script)]:
        process.send_signal(number)


def main() -> None:
    program, *words = sys.argv[1:]
    if program == "supervise":
        supervise(words[0])
        return
    with (CLUSTER / "calls").open("a") as calls:
        calls.write(shlex.join(sys.argv[1:]) + "\n")
    match program, *words[:2]:
        case ["sbatch", file]:
            text = Path(file).read_text()
            if "--partition=nowhere" in text:
                print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
                sys.exit("sbatch: error: Batch job submission failed: Invalid partition name")
            name = text.split("--job-name=")[1].split()[0]
            print(f"Submitted batch job {begin(name, text, os.getcwd())}")
        case ["srun", *_]:
            command = words[words.index("--error") + 2 :]
            os.execvp(command[0], command)
        case ["scontrol", "requeue", number]:
            (CLUSTER / f"requeue-{number}").touch()
        case ["squeue", *_]:
            for number, job in jobs(flag("name")).items():
                if job["state"] == "RUNNING":
                    print(number, job["state"])
        case ["scancel", *_] if flag("state") == "RUNNING":
            for job in jobs(flag("name")).values():
                if job["state"] == "RUNNING":
                    send(job, signal.Signals[f"SIG{flag('signal')}"], to_script=False)
        case ["scancel", *_]:
            pass  # none waits
        case ["xpk", "workload", "create"]:
            if flag("cluster") == "nowhere":
                print("[XPK] Error: cluster nowhere was not found")
                sys.exit(1)
            begin(flag("workload"), "exec " + flag("command"), str(CLUSTER / "image"))
        case ["xpk", "workload", "list"]:
            print("[XPK] Workload List Output:")
            print("Jobset Name   Created Time   Priority   TPU/GPU VMs Needed   Status   …")
            ends = {
                "RUNNING": "Admitted   The workload is admitted",
                "COMPLETED": "Finished   jobset completed successfully",
                "FAILED": "Finished   jobset failed due to one or more job failures",
            }
            for job in jobs(flag("filter-by-job")).values():
                print(f"{job['name']}   2026-06-01T00:00:00Z   medium   4   "
                      f"{ends[job['state']]}   2026-06-01T00:00:00Z")  # fmt: skip
        case ["xpk", "workload", "delete"]:
            for number, job in jobs(flag("workload")).items():
                if job["state"] == "RUNNING":
                    send(job, signal.SIGTERM, to_script=True)
                save(number, **job | {"name": "deleted"})
        case _:
            sys.exit(f"error: unknown command {sys.argv[1:]}")


if __name__ == "__main__":
    main()
