"""The servers that tests talk to keep the promises that are tested against them."""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.s3_app import one_writer_at_a_time


def test_of_writers_that_look_before_they_write_one_is_first() -> None:
    written: list[str] = []

    def looks_then_writes(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        absent = not written
        time.sleep(0.02)
        if absent:
            written.append(environ["NAME"])
        yield b"first" if absent else b"second"      # a reply is made only as it is read

    def told(app: Any) -> list[bytes]:
        written.clear()
        with ThreadPoolExecutor(4) as threads:
            return [b"".join(reply) for reply in threads.map(
                lambda name: list(app({"REQUEST_METHOD": "PUT", "NAME": str(name)}, None)), range(4))]

    assert told(looks_then_writes).count(b"first") > 1                    # what the lock is for
    assert told(one_writer_at_a_time(looks_then_writes)).count(b"first") == 1 == len(written)


def test_readers_do_not_wait_for_a_writer() -> None:
    reading = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "GET":
            reading.set()
            return [b"read"]
        return [b"read meanwhile" if reading.wait(10) else b"alone"]

    locked = one_writer_at_a_time(app)
    with ThreadPoolExecutor(2) as threads:
        writer = threads.submit(locked, {"REQUEST_METHOD": "PUT"}, None)
        assert list(locked({"REQUEST_METHOD": "GET"}, None)) == [b"read"]
        assert list(writer.result()) == [b"read meanwhile"]


def test_a_writer_that_never_sends_its_end_holds_up_no_other() -> None:
    rest, given = threading.Event(), []

    class Stalled:
        def read(self, length: int) -> bytes:
            assert length == 7 and rest.wait(10)
            return b"partial"

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        given.append(environ["wsgi.input"].read())
        return []

    locked = one_writer_at_a_time(app)
    with ThreadPoolExecutor(2) as threads:
        stalled = threads.submit(locked, {"REQUEST_METHOD": "PUT", "CONTENT_LENGTH": "7", "wsgi.input": Stalled()}, None)
        locked({"REQUEST_METHOD": "PUT", "CONTENT_LENGTH": "", "wsgi.input": Stalled()}, None)
        rest.set()
        stalled.result()
    assert given == [b"", b"partial"]
