"""What a person or a program sees of a run."""

import io
import json

import pytest

from flows import console
from flows.console import BarProgress, JsonProgress, LineProgress, Tee, describe


class Clock:
    """Stands still until it is set."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The console's clock, at 100 s."""
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", lambda: clock.now)
    return clock


def test_figures_in_words() -> None:
    assert describe({"kimg": 12.84, "images_per_s": 1612.4, "loss_d": 1.2103}) == "12.8 kimg  1,612 images/s  D 1.21"
    assert describe({"shard": "3 of 9"}) == "shard 3 of 9"


def test_piped_output_is_a_line_every_few_seconds(clock: Clock) -> None:
    out = io.StringIO()
    progress = LineProgress(out)
    progress.stage("train")
    for second in range(12):
        clock.now = 100.0 + second
        progress.update(second, 24, images_per_s=1500.0)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3                                                # the stage, and after 5 and 10 of 12 seconds
    assert lines[1].endswith("train:  21 %  1,500 images/s  ETA 19 s")


def test_the_time_left_counts_from_where_the_stage_began_to_move(clock: Clock) -> None:
    out = io.StringIO()
    progress = LineProgress(out)
    progress.stage("train")
    for second in range(30, 50):                                          # half a minute to start, and resumed at 60 of 100
        clock.now = 100.0 + second
        progress.update(60 + second - 30, 100)
    lines = out.getvalue().splitlines()
    assert "ETA" not in lines[1] and lines[2].endswith("65 %    ETA 35 s") and lines[4].endswith("75 %    ETA 25 s")


def test_json_events_one_a_second(clock: Clock) -> None:
    out = io.StringIO()
    progress = JsonProgress(out)
    progress.stage("sample")
    for tenth in range(25):
        clock.now = 110.0 + tenth / 10
        progress.update(tenth, 25, rows=float(tenth))
    progress.note("done")
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [e["event"] for e in events] == ["stage", "progress", "progress", "progress", "note"]
    assert events[2]["stage"] == "sample" and events[2]["rows"] == 10.0 and events[-1]["message"] == "done"


def test_a_terminal_keeps_a_line_for_each_finished_stage() -> None:
    out = io.StringIO()
    progress = BarProgress(out)
    for name in ("prepare", "train"):
        progress.stage(name)
        progress.update(1, 2, loss_d=1.0)
        progress.note("class [red]x[/red] is small")
    progress.close()
    text = out.getvalue()
    assert "✓ prepare" in text and "✓ train" in text and "class [red]x[/red] is small" in text


def test_tee_tells_all() -> None:
    outs = [io.StringIO(), io.StringIO()]
    tee = Tee(*(LineProgress(out) for out in outs))
    tee.stage("gate")
    tee.note("passed")
    tee.close()
    assert outs[0].getvalue().split()[1:] == outs[1].getvalue().split()[1:] and "gate: passed" in outs[0].getvalue()
