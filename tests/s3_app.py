"""moto's S3 server with writes one after the other, as `python tests/s3_app.py PORT`.

moto answers each request in a thread, and of a conditional put it first looks whether the condition holds and then writes: two writers
may both be told that they were first. S3 promises that one of them is.
"""

import io
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


def one_writer_at_a_time(app: App) -> App:
    """`app` with a lock around every request that isn't a read, from when its body is here: a writer killed midway holds up no other."""
    lock = threading.Lock()

    def locked(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start_response)
        environ["wsgi.input"] = io.BytesIO(_body(environ))
        with lock:
            return list(app(environ, start_response))

    return locked


def _body(environ: dict[str, Any]) -> bytes:
    if environ.get("CONTENT_LENGTH"):
        return bytes(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    return bytes(environ["wsgi.input"].read()) if environ.get("wsgi.input_terminated") else b""


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), one_writer_at_a_time(DomainDispatcherApplication(create_backend_app)), threaded=True,
               request_handler=MotoRequestHandler)
