"""Prometheus: what a run tells at its port while it goes on, and what outlives it at a Pushgateway."""

import contextlib
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows.metrics import PORT, PUSHGATEWAY, measured
from pipeline.errors import ConfigError, GateRefused, Interrupted, SourceError
from pipeline.fanout import sample
from pipeline.store import Store, troubles
from tests.pipeline.small import CHECKPOINT, SNAPSHOT, load_every_third, load_painter, small_run
from tests.servers import S3Server, faulty


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def figures(text: str) -> dict[str, float]:
    """`name` or `name stage` → value."""
    return {" ".join([s.name, *([s.labels["stage"]] if "stage" in s.labels else [])]): s.value
            for family in text_string_to_metric_families(text) for s in family.samples}


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        return figures(reply.read().decode())


def test_a_run_in_flight_can_be_scraped(monkeypatch: pytest.MonkeyPatch) -> None:
    troubles.add(5)                                      # of an earlier run in this process
    port = free_port()
    monkeypatch.setenv(PORT, str(port))
    with measured("pets") as run:
        run.stage("train")
        run.update(0.25, 1.0, kimg=12.5, images_per_s=800, loss_d=1.2, loss_g=float("nan"))
        told = scrape(port)
        assert told["ganmill_stage train"] == 1 and told["ganmill_stage sample"] == 0
        assert (told["ganmill_trained_kimg"], told["ganmill_images_per_second"]) == (12.5, 800)
        assert told["ganmill_stage_progress_ratio"] == 0.25 and told["ganmill_store_errors_total"] == 0
        with measured("another") as inner:               # the flow inside the command: one run, one set of figures
            assert inner is run
        run.stage("sample")
        run.update(30, 120, shards="3/12", rejects=7, queue=8, in_flight=1)
        told = scrape(port)
        assert told["ganmill_images_per_second"] == 0, "of the stage at work"
        assert [told[f"ganmill_{name}"] for name in ("shards_done", "shards_planned", "rejected_images", "queue_depth",
                                                     "shards_in_flight")] == [3, 12, 7, 8, 1]
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_sampling_tells_shards_rejects_queue_and_failed_requests(monkeypatch: pytest.MonkeyPatch, s3_server: S3Server) -> None:
    """The stage itself, against a store that fails now and then."""
    port = free_port()
    monkeypatch.setenv(PORT, str(port))
    seen: list[dict[str, float]] = []
    with faulty(s3_server, lambda n, method, path: "503" if method == "PUT" and n % 5 == 0 else None) as proxy:
        run = small_run(f"s3://{s3_server.new_bucket()}/sets", options=proxy.server.options, filter={"min_confidence": 0.1})
        plan, record = run.plan()
        before = troubles.count()
        with measured("small") as listener:
            listener.stage("sample")
            receipts = sample(run.config, SNAPSHOT, CHECKPOINT, plan, run.folder, run.dataset, record.version, listener,
                              load=load_painter, load_filter=load_every_third)
            seen.append(scrape(port))
            assert proxy.faults > 0
    [told] = seen
    assert told["ganmill_shards_done"] == told["ganmill_shards_planned"] == len(receipts) > 2
    assert told["ganmill_queue_depth"] == told["ganmill_shards_in_flight"] == 0
    assert told["ganmill_rejected_images"] == sum(sum(r.rejects.values()) for r in receipts) > 0
    assert told["ganmill_store_errors_total"] == troubles.count() - before > 0


def test_no_object_is_no_error_of_the_store(tmp_path: Path) -> None:
    before, store = troubles.count(), Store(str(tmp_path))
    assert not store.exists("a") and store.put_if_absent("b", b"1") and not store.put_if_absent("b", b"2")
    assert troubles.count() == before


@contextlib.contextmanager
def gateway() -> Iterator[tuple[str, list[tuple[str, str, dict[str, float]]]]]:
    """Stands for a Pushgateway: (URL, what it was sent: method, path, figures)."""
    sent: list[tuple[str, str, dict[str, float]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            sent.append((self.command, self.path, figures(body)))
            self.send_response(200)
            self.end_headers()

        do_PUT = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", sent
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("error", "how"), [
    (None, "success"), (GateRefused("coverage 0.1"), "refusal"), (SourceError("gone"), "failure"), (ValueError("x"), "failure"),
    (Interrupted("stopped"), "stop"), (KeyboardInterrupt(), "stop"),
])
def test_how_a_run_ended_is_pushed_beside_what_is_there(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, how: str
) -> None:
    with gateway() as (url, sent):
        monkeypatch.setenv(PUSHGATEWAY, url)
        with contextlib.suppress(BaseException), measured("pets") as run:
            run.stage("prepare")
            if error is not None:
                raise error
    assert [(method, path) for method, path, _ in sent] == [("POST", "/metrics/job/ganmill/dataset/pets")] * 2, \
        "POST: figures of earlier runs stay"
    last = sent[-1][2]
    assert {n for n in last if n.startswith("ganmill_last_")} == {f"ganmill_last_{how}_timestamp_seconds"}
    assert last["ganmill_stage prepare"] == 0 and sent[0][2]["ganmill_stage prepare"] == 1


def test_a_port_that_is_taken_and_a_gateway_that_is_gone_stop_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv(PORT, f"127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv(PUSHGATEWAY, f"http://127.0.0.1:{free_port()}")
        with measured("pets") as run:
            run.stage("train")
    told = capsys.readouterr().err
    assert "can't be opened" in told and "not pushed" in told and told.count("the run goes on") >= 2


@pytest.mark.parametrize("wrong", ["http", "0", "99999", "host:port"])
def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv(PORT, wrong)
    with pytest.raises(ConfigError, match=PORT), measured("pets"):
        pytest.fail("began")
    monkeypatch.delenv(PORT)
    with measured("pets") as run:                        # and nothing is left of it
        run.stage("train")
