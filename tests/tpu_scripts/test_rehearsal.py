"""The dress rehearsal as docs/tpu.md has it: the scripts, jaxllm itself, everything in a bucket.

Google's `gcloud`, its hosts (fake_gcloud.py), its object store and its metadata server are stood in
for. The hosts are given the environment of the tests; with TPU_REHEARSAL=PATH they have the
programs of that PATH, such as a Python that is too old, and install with pip, uv and the network.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gin
import pytest

from jaxllm import prepare
from jaxllm.kvstore import KeyValueStore
from jaxllm.run.run import Run
from tests import buckets
from tests.data.conftest import texts
from tests.devices import xla_flags
from tests.hosts import free_port
from tests.test_rehearsal import DOMAINS, IN_FILES, STEPS, flags
from tests.tpu_scripts import conftest
from tests.tpu_scripts.conftest import SCRIPTS, Machine, wait_for

WHERE = ("--name=llama", "--zone=us-central2-b")
TYPE = "--type=v4-16"  # two hosts
RUN = "gs://bucket/scripted/run"
ONE_DEVICE = ("--gin.MeshConfig.fsdp=2", "--gin.EVAL_TASKS=('heldout_c4',)")  # on each host
ACCOUNT = "123-compute@developer.gserviceaccount.com"
IMAGE_PATH = os.environ.get("TPU_REHEARSAL", "")


class _Metadata(BaseHTTPRequestHandler):
    """Tells a host the service account that it acts as."""

    def do_GET(self) -> None:
        known = self.path.endswith("/instance/service-accounts/default/email")
        self.send_response(200 if known and self.headers["Metadata-Flavor"] == "Google" else 404)
        self.end_headers()
        self.wfile.write(ACCOUNT.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def machine(bucket: buckets.Proxy, metadata: str, tmp_path: Path) -> Iterator[Machine]:
    made = conftest.fake_cloud(tmp_path, SCRIPTS)
    conftest.executable(made.cloud / "train", f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    variables = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(1),
        "JAX_FORCE_TPU_INIT": "1",  # as where there is one
        "JAX_COORDINATOR_PORT": str(free_port()),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": "gs://bucket/scripted/compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "GCE_METADATA_HOST": metadata,
        **buckets.environment(bucket),
    }
    if IMAGE_PATH:
        (made.cloud / "image" / "bin" / "python3").unlink()
        network = ("PIP_", "UV_", "SSL_")
        variables |= {k: v for k, v in os.environ.items() if k.startswith(network)}
        variables |= {"PATH": f"{IMAGE_PATH}:/usr/bin:/bin"}
    made.set_on_hosts(**variables)
    yield made
    conftest.kill_runs(tmp_path)


def prepared(arguments: list[str]) -> None:
    """Puts the corpora and the token store into the bucket."""
    files = {
        f"{domain}/{split}/00.jsonl": "".join(
            json.dumps({"text": text}) + "\n" for text in texts(f"{domain} {split}", count)
        ).encode()
        for domain in DOMAINS
        for split, count in (("train", 150), ("validation", 6))
    }
    KeyValueStore("gs://bucket/corpus").write(files)
    assert prepare.main(arguments) == 0
    gin.clear_config()


@pytest.mark.slow
def test_a_run_on_a_pod_that_is_taken_away_finishes(
    machine: Machine, bucket: buckets.Proxy
) -> None:
    arguments = [*flags(RUN, **IN_FILES), *ONE_DEVICE]
    prepared(arguments)
    machine.states("ACTIVE")
    for script, *more in (("create", TYPE, "--wait"), ("setup",)):
        done = machine.run(script, *WHERE, *more)
        assert done.returncode == 0, done.stderr

    bucket.rule = lambda method, path: 403 if method == "POST" else None
    refused = machine.run("launch", *WHERE, "--", *arguments)
    assert refused.returncode == 2
    [line] = [each for each in refused.stderr.splitlines() if each.startswith("error: ")]
    assert f"no writing to {RUN}: " in line
    assert f"gs://bucket --member=serviceAccount:{ACCOUNT} " in line

    taken = threading.Event()
    bucket.rule = lambda method, path: (
        None if "checkpoints%2F8" not in path or taken.wait(300) else 500
    )  # so that it is taken away between steps 4 and 8
    command = [str(SCRIPTS / "keep_running.sh"), *WHERE, TYPE, "--spot", "--poll_seconds=2"]
    with subprocess.Popen(
        [*command, "--", *arguments], env=machine.environment, stderr=subprocess.PIPE, text=True
    ) as loop:
        wait_for(lambda: any(e.step == 4 for e in Run(RUN).available()), 600, every=1)
        (machine.cloud / "bucket" / "step").touch()
        machine.states("SUSPENDING", "SUSPENDED", "NONE", "ACTIVE")
        wait_for(lambda: len(machine.called("queued-resources", "create")) == 2)
        taken.set()
        said = loop.communicate(timeout=1200)[1]
    assert loop.returncode == 0, said
    states = [line.split(" llama: ")[1] for line in said.splitlines() if " llama: " in line]
    assert states == [
        "ACTIVE none", "ACTIVE running", "SUSPENDING", "SUSPENDED", "NONE",
        "ACTIVE none", "ACTIVE running", "ACTIVE finished",
    ]  # fmt: skip

    assert machine.run("status", *WHERE).stdout.splitlines()[-1] == "run: finished"
    log = machine.run("logs", *WHERE, "--no_follow").stdout
    assert f"resuming {RUN} at step 4" in log
    assert f"{RUN}/report/index.html" in log
    run = Run(RUN)
    assert list(run.metrics().step) == list(range(1, STEPS + 1))
    assert run.restart_lines.read()[0]
    host = machine.cloud / "hosts" / "llama.0" / "jaxllm"
    if IMAGE_PATH:
        ask = "import sys, jax; print(sys.version, jax.__version__)"
        print(subprocess.check_output([host / ".venv/bin/python", "-c", ask], text=True))
    commit = (host / "COMMIT").read_text().strip()
    assert {e.code_version.partition("+")[2] for e in run.available()} == {commit}
    assert b"<html" in (KeyValueStore(RUN).read("report/index.html")[0] or b"")
