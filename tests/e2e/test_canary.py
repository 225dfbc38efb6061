"""Planted secrets are looked for in everything that a run leaves behind: output, store, Prefect, temporary files."""

import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.e2e.conftest import Command, api
from tests.servers import S3Server

IN_OPTIONS, IN_URL, IN_QUERY, IN_ENVIRONMENT = "canary-secret", "canary-in-url", "canary-in-query", "canary-from-environment"
CANARIES = (IN_OPTIONS, IN_URL, IN_QUERY, IN_ENVIRONMENT)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def parquet() -> bytes:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(36):
        png = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(png, "PNG")
        rows.append({"image": {"bytes": png.getvalue(), "path": f"{i}.png"}, "label": i % 3 // 2})
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.fixture
def source_url() -> Iterator[str]:
    """A web server that wants a user, a password and a signature for its one Parquet file."""
    content = parquet()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            import base64

            allowed = self.headers.get("Authorization") == "Basic " + base64.b64encode(f"me:{IN_URL}".encode()).decode()
            body = content if allowed and IN_QUERY in self.path else b""
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if part and body:
                start, end = int(part.group(1)), min(int(part.group(2)), len(body) - 1)
                body = body[start:end + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
            else:
                self.send_response(200 if body else 403)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:{IN_URL}@127.0.0.1:{server.server_address[1]}/images.parquet?sig={IN_QUERY}"
    server.shutdown()


def leaks(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    return [c for c in CANARIES if c.encode() in data]


def test_no_secret_is_left_anywhere(command: Command, prefect_server: str, s3_server: S3Server, source_url: str) -> None:
    bucket = s3_server.new_bucket()
    command.env |= {"PREFECT_API_URL": prefect_server, "TOKEN_OF_MINE": IN_ENVIRONMENT, "OMP_NUM_THREADS": "1",
                    "GANMILL_LOG_FORMAT": "json"}
    options = {**s3_server.options, "config_kwargs": {"user_agent_extra": "${TOKEN_OF_MINE}"}}
    sections: dict[str, Any] = {
        "source": {"format": "parquet", "url": source_url}, "publish": {"url": f"s3://{bucket}/sets", "storage_options": options},
        "prepare": {"resolution": 8}, "train": {"model": "mlp", "budget": {"kimg": 0.3}}, "evaluate": {"samples": 20, "lift": None},
    }
    config = str(command.config(**sections))
    told = [command.run("validate", config), command.run("run", config, "--json", timeout_s=600), command.run("run", config),
            command.run("doctor", config), command.run("runs", config), command.run("deploy", config)]
    assert [t.status for t in told] == [0, 0, 0, 0, 0, 2], [t.err[-2000:] for t in told]
    refused = str(command.config("refused.yaml", **{**sections, "gate": {"min_coverage": 1.0, "min_lift_pp": None}}))
    wrong = str(command.config("wrong.yaml", **{**sections, "publish": {
        "url": "s3://no-such-bucket/sets", "storage_options": options}}))
    unreachable = str(command.config("unreachable.yaml", **{**sections, "source": {
        "format": "parquet", "url": source_url.replace("images.parquet", "gone.parquet").replace(IN_QUERY, f"x-{IN_QUERY}")
        .replace(f":{IN_URL}@", f":wrong-{IN_URL}@")}}))
    told += [command.run("run", refused, "--run-id", "refused", timeout_s=600), command.run("run", wrong), command.run("run", unreachable)]
    assert [t.status for t in told[-3:]] == [3, 1, 1], [t.err[-2000:] for t in told[-3:]]

    for ended in told:
        assert leaks(ended.out) == leaks(ended.err) == [], ended
    fs = fsspec.filesystem("s3", **s3_server.options, use_listings_cache=False, skip_instance_cache=True)
    objects = fs.find(bucket)
    assert len(objects) > 15
    assert {key: leaks(fs.cat_file(key)) for key in objects if leaks(fs.cat_file(key))} == {}
    for path, body in [("/flow_runs/filter", {}), ("/task_runs/filter", {}), ("/artifacts/filter", {}), ("/logs/filter", {"limit": 200}),
                       ("/events/filter", {"filter": {"event": {"prefix": ["ganmill."]}}})]:
        answer = api(prefect_server, path, body)
        assert answer, path
        assert leaks(json.dumps(answer)) == [], path
    assert {e["event"] for e in api(prefect_server, "/events/filter", {"filter": {"event": {"prefix": ["ganmill."]}}})["events"]} >= {
        "ganmill.dataset.published", "ganmill.dataset.refused"}
    left = [f for f in command.folder.rglob("*") if f.is_file() and f.suffix != ".yaml"]
    assert {str(f): leaks(f.read_bytes()) for f in left if leaks(f.read_bytes())} == {}
