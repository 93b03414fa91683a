"""The scripts against a fake gcloud: what they ask for and refuse, and the loop that resumes."""

import argparse
import math
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jaxllm import cli, runtime
from jaxllm.training.experiment import Experiment
from tests.conftest import REPOSITORY
from tests.tpu_scripts.conftest import SCRIPTS, Machine, wait_for

WHERE = ("--name=llama", "--zone=us-central2-b")
VERBS = ("create", "setup", "launch", "status", "stop", "logs", "delete", "keep_running")
Keep = Callable[..., subprocess.CompletedProcess[str]]


def printed(machine: Machine, script: str, *flags: str) -> list[list[str]]:
    """The commands of a dry run, as words; nothing is called."""
    done = machine.run(script, *WHERE, "--dry_run", *flags)
    assert done.returncode == 0, done.stderr
    assert machine.calls == []
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("kind", "gcloud_kind", "image"),
    [
        ("v2-8", "v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "v3-32", "tpu-ubuntu2204-base"),
        ("v4-8", "v4-8", "tpu-ubuntu2204-base"),
        ("v5e-256", "v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5litepod-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v5p-128", "v2-alpha-tpuv5"),
        ("v6e-64", "v6e-64", "v2-alpha-tpuv6e"),
    ],
)
def test_create_asks_for_the_type_with_its_image(
    machine: Machine, kind: str, gcloud_kind: str, image: str
) -> None:
    [words] = printed(machine, "create", f"--type={kind}", "--spot", "--project=mine")
    assert words == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "llama",
        f"--accelerator-type={gcloud_kind}", f"--runtime-version={image}", "--node-id=llama",
        "--spot", "--quiet", "--zone=us-central2-b", "--project=mine",
    ]  # fmt: skip


def test_create_asks_for_slices_and_passes_flags_on(machine: Machine) -> None:
    flags = ("--slices", "3", "--reserved", "--gcloud_flags=--network=n --tags=a")
    [words] = printed(machine, "create", "--type=v5p-8", *flags)
    assert words[8:] == [
        "--node-count=3", "--node-prefix=llama", "--reserved", "--network=n", "--tags=a",
        "--quiet", "--zone=us-central2-b",
    ]  # fmt: skip


def test_create_waits_until_it_is_there(machine: Machine) -> None:
    machine.states("CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = machine.run("create", *WHERE, "--type=v4-8", "--wait", "--poll_seconds=0.01")
    assert done.returncode == 0, done.stderr
    assert len(machine.called("queued-resources", "describe")) == 4
    machine.states("WAITING_FOR_RESOURCES", "FAILED")
    flags = ("--name=other", "--zone=a", "--type=v4-8", "--wait", "--poll_seconds=0.01")
    done = machine.run("create", *flags)
    assert done.returncode == 1
    assert "other: FAILED" in done.stderr


def test_arguments_reach_the_run_as_they_were_given(machine: Machine) -> None:
    given = ["--gin_file=openllama.gin", "--gin.X='a b'", '--gin.Y=(1, "$HOME")']
    [words] = printed(machine, "launch", "--", *given)
    command = next(word for word in words if word.startswith("--command=")).split("=", 1)[1]
    assert shlex.split(command) == [
        "bash", "jaxllm/tpu_scripts/on_host.sh", "start",
        "--coordinator_address=auto", *given,
    ]  # fmt: skip
    assert "--worker=all" in words


def parsed(arguments: list[str]) -> argparse.Namespace:
    """As jaxllm.train reads them."""
    flags = cli.parser("")
    runtime.add_host_flags(flags)
    args = cli.parse(flags, arguments)
    cli.load_gin(args)
    return args


def test_launch_lets_the_hosts_find_each_other(machine: Machine) -> None:
    [words] = printed(machine, "launch", "--", "--gin_file=quickstart.gin")
    command = next(word for word in words if word.startswith("--command=")).split("=", 1)[1]
    assert parsed(shlex.split(command)[3:]).coordinator_address == "auto"


def test_gke_runs_train_on_every_host() -> None:
    job = yaml.safe_load((SCRIPTS / "gke.yaml").read_text())["spec"]["replicatedJobs"][0]
    hosts_of_slice = job["template"]["spec"]
    pod = hosts_of_slice["template"]["spec"]
    [container] = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    per_host = container["resources"]["limits"]["google.com/tpu"]
    assert hosts_of_slice["parallelism"] == hosts_of_slice["completions"] == chips // per_host
    assert (REPOSITORY / container["command"][1]).exists()
    assert parsed(container["args"]).coordinator_address == "auto"
    assert Experiment.configured().model_dir.startswith("gs://")


def test_every_slice_is_set_up(machine: Machine) -> None:
    words = printed(machine, "setup", "--slices=2", "--python=3.11")
    assert [command[4:7] for command in words[1:]] == [
        ["scp", "./jaxllm.tar.gz", "llama-0:"], ["ssh", "llama-0", "--worker=all"],
        ["scp", "./jaxllm.tar.gz", "llama-1:"], ["ssh", "llama-1", "--worker=all"],
    ]  # fmt: skip
    assert words[-1][7].endswith("on_host.sh install 3.11")


def test_logs_and_delete(machine: Machine) -> None:
    [words] = printed(machine, "logs", "--slices=2", "--slice=1", "--worker=3", "--lines=7")
    assert words[4:8] == ["ssh", "llama-1", "--worker=3", "--command=tail -n 7 -F jaxllm/run.log"]
    [words] = printed(machine, "delete")
    assert words[4:8] == ["delete", "llama", "--force", "--quiet"]


@pytest.mark.parametrize("script", VERBS)
def test_help_documents_every_flag(machine: Machine, script: str) -> None:
    done = machine.run(script, "--help")
    assert done.returncode == 0
    text = (SCRIPTS / f"{script}.sh").read_text()
    call = text[text.index("\nparse_flags ") :].split('"$@"')[0]
    names = call.replace("parse_flags", "").replace("'", "").replace("\\", "").split()
    for name in ["name", "zone", "slices", "project", "dry_run", *names]:
        assert f"--{name}" in done.stdout, name
    assert "shellcheck" not in done.stdout


@pytest.mark.parametrize(
    ("script", "flags", "culprit"),
    [
        ("create", ["--name=Llama", "--zone=z", "--type=v4-8"], "--name='Llama'"),
        ("create", ["--name=llama", "--type=v4-8"], "--zone is missing"),
        ("create", [*WHERE], "--type=''"),
        ("create", [*WHERE, "--type=7x-64"], "GKE only"),
        ("create", [*WHERE, "--type=v4-8", "--spot", "--reserved"], "exclude each other"),
        ("create", [*WHERE, "--type=v4-8", "--slices=two"], "--slices='two'"),
        ("create", [*WHERE, "--type=v4-8", "--poll_seconds=1m"], "--poll_seconds='1m'"),
        ("create", [*WHERE, "--typ=v4-8"], "--typ=v4-8"),
        ("create", [*WHERE, "--type"], "--type needs a value"),
        ("create", [*WHERE, "--spot=yes"], "--spot=yes"),
        ("setup", [*WHERE, "--python=three"], "--python='three'"),
        ("setup", [*WHERE, "--python=3.9"], "--python='3.9'"),
        ("launch", [*WHERE], "what to train is missing"),
        ("launch", [*WHERE, "--gin_file=a.gin"], "--gin_file=a.gin"),
        ("logs", [*WHERE, "--slice=1"], "--slice=1"),
        ("logs", [*WHERE, "--lines=all"], "--lines='all'"),
        ("delete", [*WHERE, "now"], "now"),
        ("keep_running", [*WHERE, "--type=v4-8"], "what to train is missing"),
        ("keep_running", [*WHERE, "--type=v1-8", "--", "--gin_file=a.gin"], "--type='v1-8'"),
        ("keep_running", [*WHERE, "--type=v4-8", "--max_failures=x", "--", "-a"], "--max_failures"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_asks_for_nothing(
    machine: Machine, script: str, flags: list[str], culprit: str
) -> None:
    done = machine.run(script, *flags)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert culprit in line
    assert machine.calls == []


def test_a_preempted_run_is_resumed_on_a_new_tpu(machine: Machine, keep_running: Keep) -> None:
    machine.states(
        "NONE", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED",
        "NONE", "PROVISIONING", "ACTIVE",
    )  # fmt: skip
    done = keep_running("hang", "--delete_when_finished")
    assert done.returncode == 0, done.stderr
    assert len(machine.called("queued-resources", "create")) == 2
    assert len(machine.called("queued-resources", "delete")) == 2
    assert machine.bucket("step") == ["10"]
    # 2 slices x 2 hosts, twice, every time with the same arguments
    arguments = "-m jaxllm.train --coordinator_address=auto --gin_file=a b.gin"
    starts = machine.bucket("starts")
    assert len(starts) == 8
    assert all(start.endswith(arguments) for start in starts)
    assert len({start.split()[0] for start in starts}) == 4
    assert "ACTIVE running" in done.stderr
    assert "ACTIVE finished" in done.stderr


def test_a_node_that_is_gone_is_asked_for_again(machine: Machine, keep_running: Keep) -> None:
    """The queued resource still says ACTIVE while its node has been preempted."""
    machine.states("NONE", "ACTIVE", "NONE", "ACTIVE")
    (machine.cloud / "lost").touch()
    done = machine.run(
        "keep_running", *WHERE, "--type=v4-8", "--poll_seconds=0.1", "--", "--gin_file=a.gin"
    )
    assert done.returncode == 0, done.stderr
    assert "llama: PREEMPTED" in done.stderr
    verbs = [call[1] for call in machine.calls if call[0] == "queued-resources"]
    assert verbs[:6] == ["describe", "create", "describe", "delete", "describe", "create"]


@pytest.mark.parametrize(("first", "says"), [("crash", "failed 1"), ("stop", "ACTIVE stopped")])
def test_a_run_that_ends_early_goes_on(
    machine: Machine, keep_running: Keep, first: str, says: str
) -> None:
    machine.states("NONE", "ACTIVE")
    done = keep_running(first)
    assert done.returncode == 0, done.stderr
    assert says in done.stderr
    assert machine.bucket("step") == ["10"]
    assert len(machine.called("queued-resources", "create")) == 1
    assert not machine.called("queued-resources", "delete")


def test_it_gives_up_after_failures_and_shows_why(machine: Machine, keep_running: Keep) -> None:
    (machine.cloud / "bucket" / "step").write_text("5\n")
    machine.states("NONE", "ACTIVE")
    done = keep_running("always_crash", "--max_failures=2")
    assert done.returncode == 1
    assert "Boom" in done.stdout
    assert "giving up after 3 failures" in done.stderr
    assert "delete.sh --name=llama" in done.stderr


def test_a_bucket_that_cannot_be_written_to_is_tried_once(machine: Machine) -> None:
    machine.set_on_hosts(NO_BUCKET="1", GCE_METADATA_HOST="localhost:1")
    machine.states("NONE", "ACTIVE")
    done = machine.run(
        "keep_running",
        *WHERE,
        "--type=v4-8",
        "--poll_seconds=0.1",
        "--",
        "--gin.MODEL_DIR=gs://b/r",
    )
    assert done.returncode == 2
    assert "--member=serviceAccount:ACCOUNT --role=roles/storage.objectAdmin" in done.stderr
    assert "giving up; the TPU is still there: " in done.stderr
    assert not machine.bucket("starts")


def test_a_running_run_is_found_again(machine: Machine, keep_running: Keep) -> None:
    """Whoever starts the loop again, or starts it late, does not start the run again."""
    machine.states("ACTIVE")
    assert machine.run("create", *WHERE, "--type=v4-8", "--slices=2").returncode == 0
    assert machine.run("setup", *WHERE, "--slices=2").returncode == 0
    assert machine.run("launch", *WHERE, "--slices=2", "--", "-x").returncode == 0
    wait_for(lambda: "10" in machine.bucket("step"))
    done = keep_running("")
    assert done.returncode == 0, done.stderr
    assert len(machine.bucket("starts")) == 4
    assert len(machine.called("queued-resources", "create")) == 1


def test_launch_lets_the_old_run_save(machine: Machine) -> None:
    machine.states("ACTIVE")
    machine.run("create", *WHERE, "--type=v4-8")
    assert machine.run("setup", *WHERE).returncode == 0
    machine.set_on_hosts(FIRST="hang")
    machine.run("launch", *WHERE, "--", "-x")
    wait_for(lambda: machine.bucket("step") == ["5"])
    assert machine.run("launch", *WHERE, "--", "-y").returncode == 0
    log = machine.cloud / "hosts" / "llama.0" / "jaxllm" / "run.log"
    wait_for(lambda: "goes on from step 5" in log.read_text())
    assert log.read_text().splitlines()[:2] == [
        "goes on from step 0",
        "stopped at step 5 and saved",
    ]
    shown = machine.run("logs", *WHERE, "--no_follow", "--lines=1")
    assert shown.stdout == "goes on from step 5\n"


def test_hosts_get_the_versions_that_are_tested(machine: Machine) -> None:
    """Their own Python is too old and brings uv; a second setup keeps the run's environment."""
    machine.run("create", *WHERE, "--type=v4-8")
    done = machine.run("setup", *WHERE)
    assert done.returncode == 0, done.stderr
    install = "pip install --quiet --python .venv/bin/python -c constraints/py{}.txt -e .[tpu]"
    new = ["venv --quiet --python 3.12 .venv", install.format(312)]
    assert sorted(machine.bucket("uv")) == sorted(new * 2)
    host = machine.cloud / "hosts" / "llama.1" / "jaxllm"
    (host / "run.log").write_text("a line")
    (host / "jaxllm" / "gone.py").touch()
    machine.run("setup", *WHERE)
    assert machine.bucket("uv")[4:] == [install.format(312)] * 2
    assert (host / "run.log").exists()
    assert not (host / "jaxllm" / "gone.py").exists()
    assert (host / "COMMIT").read_text() == "copied\n"
    machine.run("setup", *WHERE, "--python=3.11")
    assert "venv --quiet --python 3.11 .venv" in machine.bucket("uv")[6:]


def test_the_tree_of_a_checkout_says_its_commit(machine: Machine) -> None:
    git = ["git", "-C", str(machine.scripts.parent), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    (machine.scripts.parent / "README.md").write_text("changed")
    machine.run("create", *WHERE, "--type=v4-8")
    assert machine.run("setup", *WHERE).returncode == 0
    host = machine.cloud / "hosts" / "llama.0" / "jaxllm"
    copied, mark = (host / "COMMIT").read_text().strip().rsplit("-", 1)
    assert commit.startswith(copied) and mark == "dirty"
    assert (host / "README.md").read_text() == "changed"


def test_what_is_done_already_is_no_failure(machine: Machine) -> None:
    machine.states("ACTIVE")
    assert machine.run("create", *WHERE, "--type=v4-8").returncode == 0
    again = machine.run("create", *WHERE, "--type=v4-8", "--wait")
    assert again.returncode == 0, again.stderr
    assert "llama: ALREADY_EXISTS" in again.stderr
    assert machine.run("delete", *WHERE).returncode == 0
    again = machine.run("delete", *WHERE)
    assert again.returncode == 0, again.stderr
    assert "llama: NOT_FOUND" in again.stderr


def test_status_and_stop(machine: Machine) -> None:
    machine.states("NONE")
    lines = ["queued resource llama: NONE", "node llama: unknown", "run: unknown"]
    assert machine.run("status", *WHERE).stdout.splitlines() == lines
    machine.states("ACTIVE")
    machine.run("create", *WHERE, "--type=v4-8")
    machine.run("setup", *WHERE)
    machine.set_on_hosts(FIRST="hang")
    assert machine.run("launch", *WHERE, "--", "-x").returncode == 0
    wait_for(lambda: machine.bucket("step") == ["5"])
    lines = ["queued resource llama: ACTIVE", "node llama: READY", "run: running"]
    assert machine.run("status", *WHERE).stdout.splitlines() == lines
    refused = machine.run("setup", *WHERE)
    assert refused.returncode != 0
    assert "a run is going on; tpu_scripts/stop.sh ends it" in refused.stderr
    assert machine.run("stop", *WHERE).stdout == "stopped\n"
    assert machine.run("setup", *WHERE).returncode == 0


def test_in_a_container_a_stopped_run_is_not_done(machine: Machine, tmp_path: Path) -> None:
    """GKE restarts what fails: ending with 0 after SIGTERM would end the job."""
    home = tmp_path / "pod.0" / "jaxllm"
    (home / "tpu_scripts").mkdir(parents=True)
    (home / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(SCRIPTS / "on_host.sh", home / "tpu_scripts")
    shutil.copy(machine.cloud / "train", home / ".venv" / "bin" / "python")

    def start(first: str) -> subprocess.Popen[str]:
        command = ["bash", str(home / "tpu_scripts" / "on_host.sh"), "run", "-x"]
        environment = machine.environment | {"FIRST": first}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    with start("hang") as run:
        wait_for(lambda: machine.bucket("step") == ["5"])
        run.terminate()
        assert run.communicate(timeout=60)[0].endswith("stopped at step 5 and saved\n")
    assert run.returncode == 143
    with start("") as finished:
        finished.communicate(timeout=60)
    assert finished.returncode == 0


def test_what_the_run_prints_when_stopped_is_what_hosts_look_for() -> None:
    command = (REPOSITORY / "jaxllm" / "train.py").read_text()
    assert 'f"stopped at step {outcome.step} and saved"' in command
    assert "grep -q '^stopped at step'" in (SCRIPTS / "on_host.sh").read_text()
