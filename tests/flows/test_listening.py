"""What a run tells Prefect's page never holds it up and never ends it."""

import threading
from typing import Any

import prefect.artifacts
import pytest

from flows import listening
from flows.listening import RunPage


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> RunPage:
    """Of a run that a server watches, with every figure told."""
    monkeypatch.setattr(listening, "ARTIFACT_EVERY_S", 0.0)
    made = RunPage()
    made._watched = True
    return made


def test_a_server_that_hangs_keeps_nobody_waiting(page: RunPage, monkeypatch: pytest.MonkeyPatch) -> None:
    told, answer = [], threading.Event()

    def hang(**figures: Any) -> str:
        told.append(figures)
        assert answer.wait(30)
        return "id"

    monkeypatch.setattr(prefect.artifacts, "create_progress_artifact", hang)
    monkeypatch.setattr(prefect.artifacts, "update_progress_artifact", lambda id, **figures: told.append(figures))
    page.stage("train")
    for done in (1, 2, 3):
        page.update(done, 10, kimg=done)                     # comes back, though nothing was answered
    answer.set()
    page.close()
    assert [figures["progress"] for figures in told] == [10.0] and told[0]["description"].startswith("train: ")
    page.update(4, 10)
    page.close()
    assert [figures["progress"] for figures in told] == [10.0, 40.0]


def test_a_server_that_is_gone_ends_no_run(page: RunPage, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[None] = []

    def gone(**figures: Any) -> str:
        tries.append(None)
        raise ConnectionError("refused")

    monkeypatch.setattr(prefect.artifacts, "create_progress_artifact", gone)
    for done in (1, 2):
        page.update(done, 10)
        page.close()
    assert len(tries) == 2


def test_without_a_server_no_page_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect.artifacts, "create_progress_artifact", lambda **_: pytest.fail("told"))
    page = RunPage()
    page.update(1, 10)
    page.close()
