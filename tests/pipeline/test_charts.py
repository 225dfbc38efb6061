"""Charts: where things lie, that nothing is drawn from nothing, and that texts stay texts."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.documents.charts import (
    BUCKETS,
    Reference,
    Series,
    _t_interval,
    against,
    decades,
    differences,
    dumbbells,
    intervals,
    line_chart,
    number,
    ticks,
)

NAN = float("nan")


def texts(svg: str, kind: str) -> list[str]:
    return [e.text for e in ET.fromstring(svg).iter("text") if e.get("class") == kind]


def chart(*series: Series, **options) -> str:
    return str(line_chart(series, label="l", x_label="kimg", y_label="loss", **options))


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_are_round_rising_and_inside(low, span, about):
    high = low + span
    assume(high - low > 1e-9 * max(abs(low), abs(high)))
    marks = ticks(low, high, about)
    assert all(low - 1e-6 * span <= m <= high + 1e-6 * span for m in marks)
    assert marks == sorted(set(marks)) and len(marks) <= about + 2


def test_ticks_of_known_ranges():
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 200, 6) == [0.0, 50.0, 100.0, 150.0, 200.0]
    assert ticks(3, 3) == [3]
    assert decades(0.02, 40) == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert len(decades(1e-12, 1e12)) <= 8


def test_numbers_are_short():
    values = {0: "0", 0.05: "0.05", -0.5: "−0.5", 1500: "1.5k", 2e6: "2M", 1e-6: "1e−6", math.inf: "–"}
    assert {v: number(v) for v in values} == values


def test_a_straight_line_runs_from_corner_to_corner():
    svg = chart(Series("a", [0, 50, 100], [0, 5, 10]))
    points = re.search(r'<polyline[^>]*points="([^"]+)"', svg).group(1).split()
    (x0, y0), (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in points)
    assert x0 < x1 < x2 and y0 > y1 > y2             # y grows downwards
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1) and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert texts(svg, "axis") == ["loss", "kimg"] and "100" in texts(svg, "tick")


def test_a_gap_stays_a_gap():
    svg = chart(Series("a", [0, 1, 2, 3, 4], [1, 2, NAN, 3, 4]))
    assert svg.count("<polyline") == 2 and "nan" not in svg


@given(st.lists(st.one_of(st.floats(width=32), st.just(NAN)), max_size=400), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_values_give_sound_svg(values, log):
    svg = chart(Series("a", range(len(values)), values, band=True), log=log)
    usable = any(math.isfinite(v) and (v > 0 or not log) for v in values)
    assert bool(svg) == usable
    if usable:
        ET.fromstring(svg)
        assert not re.search(r"\b(nan|inf)\b", svg)
        drawn = re.findall(r'<polyline[^>]*points="([^"]+)"', svg)
        gaps = 1 + sum(not math.isfinite(v) or (log and v <= 0) for v in values)
        assert sum(len(points.split()) for points in drawn) <= BUCKETS + gaps


def test_nothing_to_draw_is_an_empty_string():
    assert chart() == chart(Series("a", [], [])) == chart(Series("a", [1], [NAN])) == ""
    assert chart(Series("a", [1], [-1]), log=True) == ""
    assert str(dumbbells([("a", NAN, 1)], label="", x_label="", before="", after="")) == ""
    assert str(differences([], NAN, (NAN, NAN), label="", x_label="")) == ""


def test_references_are_inside_the_frame():
    svg = chart(Series("a", [0, 1], [0.1, 0.2]), references=[Reference(1.0, "real <one>")], from_zero=True)
    assert texts(svg, "reflabel") == ["real <one>"]
    y = float(re.search(r'class="ref"[^>]* y1="([-\d.]+)"', svg).group(1))
    assert 12 <= y < 196


def test_names_are_text_and_never_markup():
    bad = '<script>&"\''
    for svg in (
        dumbbells([(bad, 0.5, 0.6)], label=bad, x_label=bad, before=bad, after=bad),
        differences([(bad, 0.5)], 0.5, (0.1, 0.9), label=bad, x_label=bad),
        line_chart([Series(bad, [0, 1], [0, 1])], label=bad, x_label=bad, y_label=bad),
    ):
        assert "<script" not in svg and ET.fromstring(str(svg)).get("aria-label") == bad


def test_dumbbells_point_the_right_way():
    svg = str(dumbbells([("up", 0.5, 0.7), ("down", 0.9, 0.6)], label="", x_label="recall", before="b", after="a"))
    circles = re.findall(r'<circle class="(hollow|full s1)" cx="([\d.]+)"', svg)
    before, after = ([float(x) for kind, x in circles if kind == k] for k in ("hollow", "full s1"))
    assert before[0] < after[0] and before[1] > after[1] and after[0] > after[1] and before[1] > before[0]
    assert svg.count('class="link up"') == svg.count('class="link down"') == 1


def test_intervals_are_students():
    scipy = pytest.importorskip("scipy.stats")
    values = [0.4, 1.1, 0.9, 1.6]
    low, high = _t_interval(values)
    mean, error = sum(values) / 4, scipy.sem(values)
    assert (low, high) == pytest.approx(scipy.t.interval(0.95, 3, loc=mean, scale=error))
    assert _t_interval([1.0]) == ()
    svg = str(intervals([("a", values), ("one", [0.5]), ("none", [NAN])], label="", x_label=""))
    assert svg.count('class="interval"') == 1 and texts(svg, "name") == ["a", "one"]
    assert str(intervals([], label="", x_label="")) == ""


def test_the_interval_lies_where_it_should():
    svg = str(differences([("seed 0", 1.0), ("seed 1", 2.0)], 1.5, (0.5, 2.5), label="", x_label="", threshold=0.5))
    low, high = map(float, re.search(r'class="interval" x1="([\d.]+)"[^>]* x2="([\d.]+)"', svg).groups())
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', svg).group(1))
    threshold = float(re.search(r'class="ref" x1="([\d.]+)"', svg).group(1))
    first, second = (float(x) for x in re.findall(r'<circle class="full s2" cx="([\d.]+)"', svg))
    assert zero < low == threshold < first < second < high
    assert (first - zero) * 2 == pytest.approx(second - zero, abs=0.3)
    assert "+1" in texts(svg, "tick")


def test_the_ratio_chart_has_a_line_a_series_and_an_interval_a_place():
    rows = [("G3", [(2.0, [0.1, 0.3]), (0.5, [1.0, 1.2, 0.8])]), ("G1 <b>", [(0.5, [0.2]), (1.0, [0.4])]), ("alone", [(1.0, [1.0])])]
    svg = str(against(rows, label="", x_label="ratio", y_label="points"))
    ET.fromstring(svg)
    assert svg.count("<polyline") == 2 and svg.count("<circle") == 4      # a series of one place has no line
    assert svg.count('<line class="line thin') == 2                       # a single value has no interval
    assert "<b>" not in svg and "G3, 0.5: +1.00" in svg
    xs = [float(x) for x in re.findall(r'<circle class="full s1" cx="([\d.]+)"', svg)]
    assert xs == sorted(xs)
    assert str(against([("x", [(1.0, [1.0])])], label="", x_label="", y_label="")) == ""
