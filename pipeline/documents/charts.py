"""Charts as inline SVG: no script, no font, no colour of their own (the page's style sheet gives them, light and dark).

Every text that comes from outside is escaped by `Markup.format`. Lengths are SVG user units; the page scales the whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

GLYPH = 6.3                                          # advance of a digit at the style sheet's 11 units, generously
BUCKETS = 160                                        # a curve is thinned to this many means, with the range as a band


@dataclass(frozen=True)
class Series:
    """A curve: finite points only where both x and y are; `kind` is its CSS class (a colour)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "s0"
    band: bool = False                               # show the range of what was averaged behind the mean


@dataclass(frozen=True)
class Reference:
    """A horizontal line that the curves are read against."""

    y: float
    name: str


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (steps of 1, 2 or 5 times a power of ten) inside low … high, roughly `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten around low … high (both above 0), every second or third where there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, math.ceil((last - first) / 6))
    return [10.0**e for e in range(first, last + step, step)]


def number(value: float) -> str:
    """A tick's text: 0.05, 12, 1.5k, 2M; powers of ten outside 0.001 … 10⁹ as 1e-6."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    size = abs(value)
    if size >= 1e9 or size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if size >= factor:
            return f"{value / factor:.4g}{letter}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def line_chart(
    series: Sequence[Series], *, label: str, x_label: str, y_label: str, log: bool = False,
    references: Sequence[Reference] = (), from_zero: bool = False, width: int = 460, height: int = 236,
) -> Markup:
    """Curves over a common x axis.

    Args:
        series: what to draw, later ones on top; points that are not finite (with `log`: not above 0) break the line.
        label: what a screen reader says.
        x_label, y_label: axis labels with their units.
        log: logarithmic y axis.
        references: horizontal lines with a name, e.g. a threshold.
        from_zero: the y axis starts at 0.

    Returns:
        The SVG; an empty string when there is nothing to draw.
    """
    drawn = [(s, segments) for s in series if (segments := _segments(s, log))]
    if not drawn:
        return Markup("")
    points = [p for _, segments in drawn for segment in segments for p in segment]
    usable = [r for r in references if math.isfinite(r.y) and (r.y > 0 or not log)]
    low, high = min([p[2] for p in points] + [r.y for r in usable]), max([p[3] for p in points] + [r.y for r in usable])
    if log:
        marks = decades(low, high)
        low, high = marks[0], marks[-1]
    else:
        low, high = _padded(0.0 if from_zero and low >= 0 else low, high)
        marks = ticks(low, high)
    x_all = [x for s, _ in drawn for x in s.x if math.isfinite(x)]
    x_low, x_high = min(x_all), max(x_all)
    x_low = 0.0 if 0 < x_low < 0.1 * x_high else x_low
    left = 22 + GLYPH * max(len(number(m)) for m in marks)
    frame = _Frame(width, height, left, log, x_low, x_high, low, high)
    parts = [frame.y_axis(marks, y_label), frame.x_axis(ticks(x_low, x_high, 6), x_label)]
    for r in usable:
        y = frame.y(r.y)
        parts += [_line("ref", frame.left, y, frame.right, y),
                  _text("reflabel", frame.right - 2, y - 4 if y > 24 else y + 12, r.name, "end")]
    for s, segments in drawn:
        parts += [frame.curve(s, segment) for segment in segments]
    return _svg(width, height, label, parts)


def dumbbells(
    rows: Sequence[tuple[str, float, float]], *, label: str, x_label: str, before: str, after: str,
) -> Markup:
    """One row a name: a hollow point before, a full one after, a bar between them. Values are shares (0 … 1).

    Returns:
        The SVG; an empty string when no row has two finite values.
    """
    kept = [(n, b, a) for n, b, a in rows if math.isfinite(b) and math.isfinite(a)]
    if not kept:
        return Markup("")
    width, row, top = 460, 22, 8
    left = 14 + min(150.0, GLYPH * 1.05 * max(len(_short(n)) for n, _, _ in kept))
    height = top + row * len(kept) + 44
    low, high = _padded(min(min(b, a) for _, b, a in kept), max(max(b, a) for _, b, a in kept))
    low, high = max(0.0, low), min(1.0, high)
    frame = _Frame(width, height, left, False, low, high, 0.0, 1.0)
    parts = [frame.x_axis(ticks(low, high, 5), x_label, form="percent", grid=True)]
    for i, (name, b, a) in enumerate(kept):
        y = top + row * (i + 0.5)
        parts += [
            _text("name", left - 10, y + 4, _short(name), "end"),
            _line("link up" if a >= b else "link down", frame.x(b), y, frame.x(a), y),
            _dot("hollow", frame.x(b), y, 4, f"{name}, {before}: {b:.1%}"),
            _dot("full s1", frame.x(a), y, 4.5, f"{name}, {after}: {a:.1%}"),
        ]
    return _svg(width, height, label, parts)


def differences(
    points: Sequence[tuple[str, float]], mean: float, interval: tuple[float, float], *,
    label: str, x_label: str, threshold: float | None = None,
) -> Markup:
    """Paired differences, one row a seed, and below them their mean with its 95 % interval against zero.

    Returns:
        The SVG; an empty string when the mean is not finite.
    """
    if not math.isfinite(mean):
        return Markup("")
    kept = [(n, v) for n, v in points if math.isfinite(v)]
    bounds = [v for v in interval if math.isfinite(v)]
    extremes = [0.0, mean, threshold or 0.0, *bounds, *(v for _, v in kept)]
    width, row, top = 460, 24, 20
    left = 14 + GLYPH * 1.05 * max(4, *(len(_short(n)) for n, _ in kept), 4)
    height = top + row * (len(kept) + 1) + 48
    air = 0.12 * ((max(extremes) - min(extremes)) or 1.0)
    low, high = min(extremes) - air, max(extremes) + air
    frame = _Frame(width, height, left, False, low, high, 0.0, 1.0)
    parts = [frame.x_axis(ticks(low, high, 6), x_label, form="signed", grid=True),
             _line("zero", frame.x(0), 12, frame.x(0), frame.bottom)]
    if threshold:
        parts.append(_line("ref", frame.x(threshold), 12, frame.x(threshold), frame.bottom))
    for i, (name, value) in enumerate(kept):
        y = top + row * (i + 0.5)
        parts += [_text("name", left - 10, y + 4, _short(name), "end"),
                  _dot("full s2", frame.x(value), y, 4, f"{name}: {value:+.2f}")]
    y = top + row * (len(kept) + 0.5)
    parts.append(_text("name strong", left - 10, y + 4, "mean", "end"))
    if len(bounds) == 2:
        parts.append(_line("interval", frame.x(bounds[0]), y, frame.x(bounds[1]), y))
    diamond = Markup('<path class="full s1" d="M{:.1f} {:.1f}l7 7l-7 7l-7-7z"><title>mean: {:+.2f}</title></path>')
    parts.append(diamond.format(frame.x(mean), y - 7, mean))
    return _svg(width, height, label, parts)


def intervals(rows: Sequence[tuple[str, Sequence[float]]], *, label: str, x_label: str) -> Markup:
    """One row a name: its values as faint points, their mean, and the mean's 95 % interval, against zero.

    The interval is Student's t, the one that few values bear; a single value has none.

    Returns:
        The SVG; an empty string without rows.
    """
    kept = [(name, [v for v in values if math.isfinite(v)]) for name, values in rows]
    drawn = [(name, values, _t_interval(values)) for name, values in kept if values]
    if not drawn:
        return Markup("")
    extremes = [0.0, *(v for _, values, bounds in drawn for v in (*values, *bounds))]
    width, row, top = 460, 26, 16
    left = 14 + min(230.0, GLYPH * 0.9 * max(len(_short(name, 42)) for name, _, _ in drawn))
    height = top + row * len(drawn) + 48
    air = 0.1 * ((max(extremes) - min(extremes)) or 1.0)
    low, high = min(extremes) - air, max(extremes) + air
    frame = _Frame(width, height, left, False, low, high, 0.0, 1.0)
    parts = [frame.x_axis(ticks(low, high, 6), x_label, form="signed", grid=True),
             _line("zero", frame.x(0), 10, frame.x(0), frame.bottom)]
    for i, (name, values, bounds) in enumerate(drawn):
        y, mean = top + row * (i + 0.5), sum(values) / len(values)
        parts.append(_text("name", left - 10, y + 4, _short(name, 42), "end"))
        if bounds:
            parts.append(_line("interval", frame.x(bounds[0]), y, frame.x(bounds[1]), y))
        parts += [_dot("full s2 dim", frame.x(v), y, 3, f"{name}: {v:+.2f}") for v in values]
        parts.append(_dot("full s1", frame.x(mean), y, 5, f"{name}, mean: {mean:+.2f}"))
    return _svg(width, height, label, parts)


def against(
    series: Sequence[tuple[str, Sequence[tuple[float, Sequence[float]]]]], *, label: str, x_label: str, y_label: str,
    width: int = 460, height: int = 250,
) -> Markup:
    """For each series the mean of the values at each x, joined by a line, with the mean's 95 % interval upright, against zero.

    Args:
        series: (name, [(x, values), …]); the first is drawn in the accent colour.

    Returns:
        The SVG; an empty string where no series has two places.
    """
    drawn = [(name, [(x, sum(v) / len(v), _t_interval(v)) for x, v in sorted(places) if v]) for name, places in series]
    drawn = [(name, places) for name, places in drawn if len(places) > 1]
    if not drawn:
        return Markup("")
    heights = [0.0, *(v for _, places in drawn for _, mean, bounds in places for v in (mean, *bounds))]
    widths = [x for _, places in drawn for x, _, _ in places]
    low, high = _padded(min(heights), max(heights))
    marks = ticks(low, high)
    left = 26 + GLYPH * max(len(number(m)) for m in marks)
    span = max(widths) - min(widths)
    frame = _Frame(width, height, left, False, min(widths) - 0.06 * span, max(widths) + 0.06 * span, low, high)
    parts = [frame.y_axis(marks, y_label), frame.x_axis(sorted(set(widths)), x_label),
             _line("zero", frame.left, frame.y(0), frame.right, frame.y(0))]
    for i, (name, places) in reversed(list(enumerate(drawn))):
        kind, aside = f"s{1 + i}" if i < 2 else "faint", (i - (len(drawn) - 1) / 2) * 3.0
        at = [(frame.x(x) + aside, frame.y(mean)) for x, mean, _ in places]
        line = Markup('<polyline class="line thin {}" points="{}"><title>{}</title></polyline>')
        parts.append(line.format(kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in at), name))
        for (x, y), (ratio, mean, bounds) in zip(at, places):
            if bounds:
                parts.append(_line(f"line thin {kind}", x, frame.y(bounds[0]), x, frame.y(bounds[1])))
            parts.append(_dot(f"full {kind}", x, y, 4, f"{name}, {ratio:g}: {mean:+.2f}"))
    return _svg(width, height, label, parts)


def plane(
    dots: Sequence[tuple[float, float]] = (), lines: Sequence[Sequence[tuple[float, float]]] = (), *, label: str,
    limits: tuple[float, float], kind: str = "s0", x_label: str = "x", y_label: str = "y", side: int = 330,
) -> Markup:
    """A square part of the plane, both axes alike: dots, and lines such as contours; what lies outside is left out.

    Args:
        dots: (x, y) each.
        lines: points of each line in order.
        limits: of both axes.
        kind: CSS class (a colour) of both.
    """
    low, high = limits
    left = 22 + GLYPH * max(len(number(m)) for m in ticks(low, high))
    frame = _Frame(left + side + 14, side + 52, left, False, low, high, low, high)
    marks = ticks(low, high)
    parts = [frame.y_axis(marks, y_label), frame.x_axis(marks, x_label, grid=True)]
    inside = [(x, y) for x, y in dots if low <= x <= high and low <= y <= high]
    if inside:
        path = "".join(f"M{frame.x(x):.1f} {frame.y(y):.1f}h0" for x, y in inside)
        parts.append(Markup('<path class="dots {}" d="{}"/>').format(kind, path))
    parts += [Markup('<polyline class="line thin {}" points="{}"/>').format(kind, frame._path(line)) for line in lines]
    return _svg(left + side + 14, side + 52, label, parts)


def _t_interval(values: Sequence[float]) -> tuple[float, ...]:
    """(low, high) of the mean with 95 % confidence, () for a single value."""
    n = len(values)
    if n < 2:
        return ()
    from scipy.stats import t

    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return mean - half, mean + half


class _Frame:
    """Where data coordinates lie on the page, and the axes around them."""

    def __init__(self, width: float, height: float, left: float, log: bool,
                 x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self.left, self.right, self.top, self.bottom = left, width - 14.0, 12.0, height - 40.0
        self.log = log
        self.x_low, self.x_span = x_low, (x_high - x_low) or 1.0
        self.y_low = math.log10(y_low) if log else y_low
        self.y_span = ((math.log10(y_high) if log else y_high) - self.y_low) or 1.0

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / self.x_span * (self.right - self.left)

    def y(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        return self.bottom - (at - self.y_low) / self.y_span * (self.bottom - self.top)

    def y_axis(self, marks: Sequence[float], label: str) -> Markup:
        parts = []
        for m in marks:
            parts += [_line("grid", self.left, self.y(m), self.right, self.y(m)),
                      _text("tick", self.left - 6, self.y(m) + 3.8, number(m), "end")]
        upright = Markup('<text class="axis" transform="rotate(-90 11 {y:.1f})" x="11" y="{y:.1f}" '
                         'text-anchor="middle">{}</text>')
        return Markup("").join([*parts, upright.format(label, y=(self.top + self.bottom) / 2)])

    def x_axis(self, marks: Sequence[float], label: str, *, form: str = "", grid: bool = False) -> Markup:
        parts = [_line("base", self.left, self.bottom, self.right, self.bottom)]
        for m in marks:
            text = f"{100 * m:.4g} %" if form == "percent" else number(m)
            x = self.x(m)
            if grid:
                parts.append(_line("grid", x, 8, x, self.bottom))
            parts += [_line("base", x, self.bottom, x, self.bottom + 4),
                      _text("tick", x, self.bottom + 16, "+" + text if form == "signed" and m > 0 else text, "middle")]
        parts.append(_text("axis", (self.left + self.right) / 2, self.bottom + 33, label, "middle"))
        return Markup("").join(parts)

    def curve(self, series: Series, segment: Sequence[tuple[float, float, float, float]]) -> Markup:
        if len(segment) == 1:
            return _dot(f"full {series.kind}", self.x(segment[0][0]), self.y(segment[0][1]), 2.5, series.name)
        band = Markup("")
        if series.band and any(high > low for _, _, low, high in segment):
            edge = [(x, high) for x, _, _, high in segment] + [(x, low) for x, _, low, _ in reversed(segment)]
            band = Markup('<polygon class="band {}" points="{}"/>').format(series.kind, self._path(edge))
        line = Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>')
        return band + line.format(series.kind, self._path([(x, y) for x, y, _, _ in segment]), series.name)

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _dot(kind: str, x: float, y: float, radius: float, title: str) -> Markup:
    dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>')
    return dot.format(kind, x, y, radius, title)


def _segments(series: Series, log: bool) -> list[list[tuple[float, float, float, float]]]:
    """(x, mean, low, high) in runs without a gap, thinned to about `BUCKETS` points in all."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(series.x, series.y):
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    runs = [sorted(run) for run in runs if run]
    size = max(1, math.ceil(sum(len(run) for run in runs) / BUCKETS))
    return [[_bucket(run[i:i + size]) for i in range(0, len(run), size)] for run in runs]


def _bucket(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    values = [y for _, y in points]
    return sum(x for x, _ in points) / len(points), sum(values) / len(values), min(values), max(values)


def _padded(low: float, high: float) -> tuple[float, float]:
    """low … high with some air, so that no mark sits on the frame; 0 stays 0."""
    span = (high - low) or abs(high) or 1.0
    return (low if low == 0 else low - 0.06 * span), high + 0.06 * span


def _short(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, Markup("").join(parts))
