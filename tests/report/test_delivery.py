"""Alarms arrive: by command and by POST, again after a failure, and never at the run's expense."""

import contextlib
import dataclasses
import http.server
import json
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.report import delivery
from jaxllm.report.alarms import RUN, HealthWriter, active, watching
from jaxllm.report.delivery import AlarmConfig, Delivery, close_all, deliveries
from jaxllm.run.lease import LeaseLost
from jaxllm.run.run import Run
from tests.analysis.planted_health import logged
from tests.run.test_manifest import ENTRY


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PAUSES", (0.01, 0.01))


def saving(path: Path) -> str:
    """A command that appends what it reads to a file, and asks no shell for it."""
    program = f"import sys; open({str(path)!r}, 'a').write(sys.stdin.read() + chr(10))"
    return shlex.join([sys.executable, "-c", program])


def received(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def send(outs: list[Delivery], message: dict) -> None:
    for out in outs:
        out.send(message)


@contextlib.contextmanager
def webhook(answers: list[int]) -> Iterator[tuple[str, list[dict]]]:
    """A server that answers with these codes, the last for ever, and the bodies that it took."""
    bodies: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code = answers.pop(0) if len(answers) > 1 else answers[0]
            if code == 200:
                assert self.headers["Content-Type"] == "application/json"
                bodies.append(body)
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", bodies
    server.shutdown()


def test_a_command_and_a_webhook_get_every_message_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with webhook([503, 503, 200]) as (url, bodies):
        monkeypatch.setenv("SECRET_HOOK", url)
        outs = deliveries(AlarmConfig(saving(tmp_path / "got"), "$SECRET_HOOK"), said.append)
        for number in range(3):
            send(outs, {"number": number, "nan": float("nan")})
        close_all(outs)
    expected = [{"number": number, "nan": None} for number in range(3)]
    assert received(tmp_path / "got") == expected and bodies == expected and said == []


def test_what_cannot_be_delivered_is_said_after_some_tries() -> None:
    said: list[str] = []
    with webhook([404]) as (url, _):
        outs = deliveries(AlarmConfig("/no/such/program", url), said.append)
        send(outs, {})
        close_all(outs)
    assert len(said) == 2 and any("404" in line for line in said)
    assert any("AlarmConfig.command: no alarm was delivered: [Errno 2]" in s for s in said)


def test_channels_that_hang_share_what_the_exit_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "GRACE", 0.2)
    waits: list[float] = []
    released = threading.Event()
    hanging = [Delivery(name, lambda _: print(released.wait()), print) for name in "abc"]
    send(hanging, {})
    runs = [HealthWriter(tmp_path / name) for name in "abc"]  # of a stack
    for run, one in zip(runs, hanging, strict=True):
        join = one.thread.join
        one.thread.join = lambda s, join=join: waits.append(s) or join(s)  # type: ignore
        run.deliveries.append(one)
    with watching(runs):
        pass
    assert len(waits) == 3 and sum(waits) <= 0.2, "one deadline"
    assert all(one.thread.is_alive() for one in hanging)
    released.set()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x", "$NO_SUCH_HOOK", "https://a b"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"AlarmConfig\.url"):
        AlarmConfig(url=url)


@pytest.mark.parametrize("value", ["file:///secret", "", "https://secret\n", "secret"])
def test_a_variable_without_an_address_is_refused_and_not_shown(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", value)
    with pytest.raises(UserError, match=r"AlarmConfig\.url = '\$HOOK': write https") as refused:
        AlarmConfig(url="$HOOK")
    assert "secret" not in str(refused.value)


def test_one_message_per_cause_and_its_all_clear(tmp_path: Path) -> None:
    """A spike of 20 lines; then the run fails, and goes on from before that."""
    metrics = logged(0, steps=600)
    metrics.loc[299:318, "loss"] += 2.0
    rows = metrics.to_dict("records")
    model_dir = tmp_path / "run"
    model_dir.mkdir()
    health = HealthWriter(model_dir, print, config(tmp_path))
    with pytest.raises(ValueError), watching([health]):
        health.begin(0)
        for row in rows[:340]:
            health.write_metrics(int(row["step"]), row)
        raise ValueError("no more\nof it")
    messages = received(tmp_path / "got")
    assert [(m["check"], m["state"], m["severity"]) for m in messages] == [
        ("loss spikes", "raised", "critical"),
        ("loss spikes", "cleared", "warning"),
        (RUN, "raised", "critical"),
    ]
    assert messages[0]["step"] == 304 and messages[1]["step"] == 320
    assert messages[0]["subjects"] == messages[1]["subjects"] == ["since 300"]
    assert messages[0]["run"] == "run" and "Go back to" in messages[0]["text"]
    assert "run. no more of it" in messages[2]["text"]
    (model_dir / "metrics.jsonl").write_text(
        metrics[:310].to_json(orient="records", lines=True)  # a checkpoint inside of the spike
    )
    with watching([health := HealthWriter(model_dir, print, config(tmp_path))]):
        health.begin(310)
        for row in rows[310:345]:
            health.write_metrics(int(row["step"]), row)
    again = [(m["check"], m["state"], m["step"]) for m in received(tmp_path / "got")[3:]]
    assert again == [("loss spikes", "cleared", 320), (RUN, "cleared", 341)]
    lines = [json.loads(line) for line in (model_dir / "alarms.jsonl").read_text().splitlines()]
    assert active(lines) == {}


def stop(model_dir: Path, begin: int | None, last: int, reason: str = "no space") -> None:
    """A process that begins at a step, logs until another, and fails."""
    health = HealthWriter(model_dir, print, config(model_dir.parent))
    with pytest.raises(ValueError), watching([health]):
        if begin is not None:
            health.begin(begin)
            for step in range(begin + 1, last + 1):
                health.write_metrics(step, {"tokens": float(step), "loss": 3.0})
        raise ValueError(reason)


def test_a_run_that_stops_again_for_the_same_reason_is_one_alarm(tmp_path: Path) -> None:
    """From step 50: it fails at once or after step 60, and then for another reason."""
    model_dir = tmp_path / "run"
    model_dir.mkdir()
    stop(model_dir, None, 0)
    assert not (model_dir / "alarms.jsonl").exists(), "it had not begun, but that is told"
    for _ in range(2):
        stop(model_dir, 50, 60)
        stop(model_dir, 50, 50)
    stop(model_dir, 50, 55, "NaN")
    stop(model_dir, 50, 58)
    Run(model_dir).manifest_lines.append(dataclasses.asdict(dataclasses.replace(ENTRY, step=50)))
    for reason in ("no space", "no bucket", "no bucket"):
        stop(model_dir, None, 0, reason)  # a start that fails
    told = [(m["state"], m["step"], m["reason"]) for m in received(tmp_path / "got")]
    assert told == [
        ("raised", 0, "no space"),
        ("raised", 60, "no space"),
        ("raised", 55, "NaN"),
        ("cleared", 56, "The run has passed step 55."),
        ("raised", 58, "no space"),
        *[("raised", 50, "no bucket")] * 2,
    ]
    Run(model_dir).write_config("TrainConfig.steps = 58")
    Run(model_dir).manifest_lines.append(dataclasses.asdict(dataclasses.replace(ENTRY, step=58)))
    with watching([health := HealthWriter(model_dir, print, config(tmp_path))]):
        health.begin(58)
    assert received(tmp_path / "got")[-1]["state"] == "cleared", "it has ended in order"


def config(folder: Path) -> AlarmConfig:
    return AlarmConfig(saving(folder / "got"))


def test_a_run_that_another_process_goes_on_with_is_no_alarm(tmp_path: Path) -> None:
    health = HealthWriter(tmp_path, print, config(tmp_path))
    with pytest.raises(LeaseLost), watching([health]):
        health.begin(0)
        raise LeaseLost("this run may not write any more")
    assert not (tmp_path / "got").exists() and not (tmp_path / "alarms.jsonl").exists()


def test_a_hang_and_its_end(tmp_path: Path) -> None:
    with watching([health := HealthWriter(tmp_path, print, config(tmp_path))]):
        health.begin(0)
        health.write_metrics(1, {"tokens": 1.0, "loss": 3.0})
        health.tell_of_run("hangs", "no step")
        health.write_metrics(2, {"tokens": 2.0, "loss": 3.0})
    told = [(m["check"], m["state"], m["subjects"]) for m in received(tmp_path / "got")]
    assert told == [(RUN, "raised", ["hangs"]), (RUN, "cleared", ["hangs"])]
