"""What Prometheus may ask a run: its stage, speed, shards, rejects, queue, store errors, and when it last went well.

A run is a process that ends, so there are two ways, each switched on by a variable of its environment:

    GANMILL_METRICS_PORT=9108             served at /metrics while the run goes on, to this machine alone;
                                          0.0.0.0:9108 to all
    GANMILL_METRICS_PUSHGATEWAY=URL       pushed there at every stage and at the end, so that "when did it last go
                                          well" outlives the run

Nothing here ever stops a run: a port that is taken or a gateway that is gone is a word in the log.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.exposition import pushadd_to_gateway

from flows.logs import json_wanted, line
from pipeline.errors import ConfigError, GateRefused, Interrupted
from pipeline.store import troubles

PORT = "GANMILL_METRICS_PORT"
PUSHGATEWAY = "GANMILL_METRICS_PUSHGATEWAY"
PUSH_TIMEOUT_S = 5.0
STAGES = ("begin", "prepare", "train", "evaluate", "gate", "plan", "sample", "publish")

_current: "RunMetrics | None" = None                 # of the one run that this process does


class RunMetrics:
    """The figures of one run, and a listener that keeps them.

    Args:
        dataset: the label that every figure carries.
    """

    def __init__(self, dataset: str) -> None:
        self.registry = CollectorRegistry()
        self._dataset, self._stage, self._store_errors = dataset, "", troubles.count()
        self._figures = {
            "images_per_s": self._gauge("ganmill_images_per_second", "Images per second of the stage at work."),
            "kimg": self._gauge("ganmill_trained_kimg", "Thousands of real images shown to the discriminator so far."),
            "loss_d": self._gauge("ganmill_loss_discriminator", "The discriminator's latest loss."),
            "loss_g": self._gauge("ganmill_loss_generator", "The generator's latest loss."),
            "shards_done": self._gauge("ganmill_shards_done", "Shards that have their receipt."),
            "shards_planned": self._gauge("ganmill_shards_planned", "Shards of the plan."),
            "queue": self._gauge("ganmill_queue_depth", "Shards that wait for a worker."),
            "in_flight": self._gauge("ganmill_shards_in_flight", "Shards in the hands of workers."),
            "rejects": self._gauge("ganmill_rejected_images", "Images that the filter sent back, of the shards that are done."),
        }
        self._at_work = Gauge("ganmill_stage", "1 for the stage at work, 0 for the others.", ["dataset", "stage"], registry=self.registry)
        self._share = self._gauge("ganmill_stage_progress_ratio", "How much of the stage at work is done, 0 to 1.")
        self._begun = self._gauge("ganmill_run_started_timestamp_seconds", "When this run began, Unix time.")
        self._errors = Counter("ganmill_store_errors", "Requests to the object store that failed, tried again or not.", ["dataset"],
                               registry=self.registry)
        self._begun.labels(dataset).set(time.time())
        self._errors.labels(dataset)
        self._share.labels(dataset).set(0)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["dataset"], registry=self.registry)

    def stage(self, name: str) -> None:
        """Another stage is at work."""
        self._stage = name
        for known in {*STAGES, name}:
            self._at_work.labels(self._dataset, known).set(known == name)
        self._share.labels(self._dataset).set(0)
        self._figures["images_per_s"].labels(self._dataset).set(0)
        self._count_errors()
        self.push()

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """Keeps every figure that has a gauge."""
        if total:
            self._share.labels(self._dataset).set(min(1.0, done / total))
        if isinstance(figures.get("shards"), str):   # "3/12", as a person reads it
            made, _, planned = str(figures["shards"]).partition("/")
            figures |= {"shards_done": float(made), "shards_planned": float(planned)}
        for name, value in figures.items():
            if name in self._figures and not isinstance(value, str):
                self._figures[name].labels(self._dataset).set(value)
        self._count_errors()

    def note(self, message: str) -> None:
        """Words are no figures."""

    def close(self) -> None:
        """Nothing to tidy."""

    def ended(self, how: str) -> None:
        """Notes when the run went well, was refused, failed or was stopped; the others' times stay what they were.

        Args:
            how: success | refusal | failure | stop.
        """
        name = f"ganmill_last_{how}_timestamp_seconds"
        self._gauge(name, f"When a run last ended in {how}, Unix time.").labels(self._dataset).set(time.time())
        for known in STAGES:
            self._at_work.labels(self._dataset, known).set(0)
        self._figures["images_per_s"].labels(self._dataset).set(0)
        self._count_errors()
        self.push()

    def push(self) -> None:
        """Hands everything to the Pushgateway, if there is one; figures that it has from earlier runs stay there."""
        gateway = os.environ.get(PUSHGATEWAY)
        if gateway:
            try:
                pushadd_to_gateway(gateway, job="ganmill", registry=self.registry, grouping_key={"dataset": self._dataset},
                                   timeout=PUSH_TIMEOUT_S)
            except (OSError, ValueError) as e:       # urllib's errors are OSErrors; a URL that is none is a ValueError
                _warn(f"{PUSHGATEWAY}: not pushed ({type(e).__name__}); the run goes on")

    def _count_errors(self) -> None:
        """What the store room counted since."""
        now = troubles.count()
        self._errors.labels(self._dataset).inc(max(0, now - self._store_errors))
        self._store_errors = now


@contextlib.contextmanager
def measured(dataset: str) -> Iterator[RunMetrics]:
    """The figures of the run inside, served and pushed as the environment asks; one within another is the same one."""
    global _current
    if _current is not None:
        yield _current
        return
    metrics = RunMetrics(dataset)
    stop = _serve(metrics)
    _current = metrics
    try:
        yield metrics
        metrics.ended("success")
    except BaseException as e:
        metrics.ended(_how(e))
        raise
    finally:
        _current = None
        stop()


def _how(error: BaseException) -> str:
    if isinstance(error, GateRefused):
        return "refusal"
    return "failure" if isinstance(error, Exception) and not isinstance(error, Interrupted) else "stop"


def _serve(metrics: RunMetrics) -> Any:
    """Opens the port, if one is asked for; a function that closes it."""
    asked = os.environ.get(PORT)
    if not asked:
        return lambda: None
    host, port = _address(asked)
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as e:
        _warn(f"{PORT}: {asked} can't be opened ({e.strerror}), so this run's figures are not served; the run goes on")
        return lambda: None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def _address(asked: str) -> tuple[str, int]:
    """(host, port) of `9108` or `0.0.0.0:9108`.

    Raises:
        ConfigError: it is neither.
    """
    host, _, port = asked.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{PORT}: {asked!r} is no port; set it to a number like 9108, or 0.0.0.0:9108 to be asked from elsewhere")
    return host.strip("[]") or "127.0.0.1", int(port)


def _warn(message: str) -> None:
    """One line on stderr; nobody's result depends on it."""
    sys.stderr.write((line("WARNING", message) if json_wanted() else f"ganmill: warning: {message}") + "\n")
