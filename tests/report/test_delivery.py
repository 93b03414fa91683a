"""Alarms arrive: by command and by POST, again after a failure, and never at the run's expense."""

import contextlib
import http.server
import json
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxllm.errors import UserError
from jaxllm.report import delivery
from jaxllm.report.alarms import RUN, HealthWriter, active
from jaxllm.report.delivery import AlarmConfig, Delivery, deliveries
from tests.analysis.planted_health import logged


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


def close(outs: list[Delivery]) -> None:
    for out in outs:
        out.close()


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
        close(outs)
    expected = [{"number": number, "nan": None} for number in range(3)]
    assert received(tmp_path / "got") == expected and bodies == expected and said == []


def test_what_cannot_be_delivered_is_said_after_some_tries() -> None:
    said: list[str] = []
    with webhook([404]) as (url, _):
        outs = deliveries(AlarmConfig("/no/such/program", url), said.append)
        send(outs, {})
        close(outs)
    assert len(said) == 2 and any("404" in line for line in said)
    assert any("AlarmConfig.command: no alarm was delivered: [Errno 2]" in s for s in said)


def test_a_command_that_hangs_does_not_hold_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "GRACE", 0.2)
    outs = deliveries(AlarmConfig("sleep 20"), print)
    began = time.monotonic()
    send(outs, {})
    close(outs)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"AlarmConfig\.url"):
        AlarmConfig(url=url)


def test_a_variable_cannot_smuggle_another_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "file:///etc/passwd")
    said: list[str] = []
    outs = deliveries(AlarmConfig(url="$HOOK"), said.append)
    send(outs, {})
    close(outs)
    assert "not one of http" in said[0]


def test_one_message_per_cause_and_its_all_clear(tmp_path: Path) -> None:
    """A spike of 20 lines; then the run fails, and goes on from before that."""
    metrics = logged(0, steps=600)
    metrics.loc[299:318, "loss"] += 2.0
    rows = metrics.to_dict("records")
    model_dir = tmp_path / "run"
    model_dir.mkdir()
    with pytest.raises(ValueError), HealthWriter(model_dir, print, config(tmp_path)) as health:
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
    with HealthWriter(model_dir, print, config(tmp_path)) as health:
        for row in rows[310:330]:
            health.write_metrics(int(row["step"]), row)
    again = [(m["check"], m["state"], m["step"]) for m in received(tmp_path / "got")[3:]]
    assert again == [(RUN, "cleared", 310), ("loss spikes", "cleared", 320)]
    lines = [json.loads(line) for line in (model_dir / "alarms.jsonl").read_text().splitlines()]
    assert active(lines) == {}


def config(folder: Path) -> AlarmConfig:
    return AlarmConfig(saving(folder / "got"))


def test_a_hang_and_its_end(tmp_path: Path) -> None:
    with HealthWriter(tmp_path, print, config(tmp_path)) as health:
        health.write_metrics(1, {"tokens": 1.0, "loss": 3.0})
        health.tell_of_run("hangs", "no step")
        health.write_metrics(2, {"tokens": 2.0, "loss": 3.0})
    told = [(m["check"], m["state"], m["subjects"]) for m in received(tmp_path / "got")]
    assert told == [(RUN, "raised", ["hangs"]), (RUN, "cleared", ["hangs"])]
