"""An S3-protocol server of its own process, and a proxy before it that does to requests what networks do."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Fault = Callable[[int, str, str], str | None]
"""(number of the request from 1, method, path) → None (pass on) | "500" | "503" | "lost" (carried out, no reply)
| "cut" (not carried out, no reply) | "half" (half of the reply) | "slow" (carried out, the reply `SLOW_S` later)
| "denied" | "expired" | "no bucket"."""

SLOW_S = 1.5

_REFUSALS = {
    "500": (500, "InternalError"), "503": (503, "SlowDown"), "denied": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"), "no bucket": (404, "NoSuchBucket"),
}


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and what to put into the environment to talk to it."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """For a process that shall find this server as its S3."""
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "canary-secret",
                "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}

    @property
    def options(self) -> dict[str, Any]:
        """The same as fsspec's storage options."""
        return {"endpoint_url": self.url, "key": "tester", "secret": "canary-secret",
                "client_kwargs": {"region_name": "us-east-1"}}

    def new_bucket(self) -> str:
        """Creates an empty bucket and returns its name."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT", headers={
            "Authorization": "AWS4-HMAC-SHA256 Credential=tester/20260101/us-east-1/s3/aws4_request, "
                             "SignedHeaders=host, Signature=0"})
        with urllib.request.urlopen(request, timeout=10):
            return name


@contextmanager
def s3_process() -> Iterator[S3Server]:
    """moto's server on a free loopback port; ended by its process id."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("s3_app.py")), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "16777216"},
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=2):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the S3 server did not start") from None
                time.sleep(0.1)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


Reply = tuple[int, dict[str, str], bytes]            # status, headers, content


@dataclass
class Proxy:
    """Stands before a server and does `fault` to its requests; `strip_conditions` makes it ignore If-(None-)Match."""

    upstream: S3Server
    fault: Fault = lambda n, method, path: None
    strip_conditions: bool = False
    seen: list[tuple[str, str]] = field(default_factory=list)
    faults: int = 0
    port: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @property
    def server(self) -> S3Server:
        """The way through this proxy."""
        return S3Server(f"http://127.0.0.1:{self.port}")

    def decide(self, method: str, path: str) -> str | None:
        """What happens to this request."""
        with self._counting:
            self.seen.append((method, path))
            action = self.fault(len(self.seen), method, path)
            self.faults += action is not None
            return action

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        """The upstream's reply."""
        if self.strip_conditions:
            headers = {k: v for k, v in headers.items() if k.lower() not in ("if-none-match", "if-match")}
        connection = http.client.HTTPConnection(self.upstream.url.removeprefix("http://"), timeout=30)
        try:
            connection.request(method, path, body or None, headers)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()


@contextmanager
def faulty(upstream: S3Server, fault: Fault | None = None, strip_conditions: bool = False) -> Iterator[Proxy]:
    """A proxy on a free loopback port."""
    proxy = Proxy(upstream, fault or (lambda n, method, path: None), strip_conditions)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            action = proxy.decide(self.command, self.path)
            if action == "cut":
                self.close_connection = True
                return
            if action in _REFUSALS:
                status, code = _REFUSALS[action]
                content = f"<Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
                self.answer(status, {"Content-Type": "application/xml"}, content)
                return
            status, headers, content = proxy.forward(self.command, self.path, dict(self.headers.items()), body)
            if action == "lost":
                self.close_connection = True
                return
            if action == "slow":
                time.sleep(SLOW_S)
            self.answer(status, headers, content, half=action == "half")

        def answer(self, status: int, headers: dict[str, str], content: bytes, half: bool = False) -> None:
            self.send_response_only(status)
            length = headers.get("Content-Length", str(len(content)))
            for key, value in headers.items():
                if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(key, value)
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if half else content)
            self.close_connection = self.close_connection or half

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
