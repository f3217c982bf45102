"""Which charts a report has, by what it measured."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from loadtest.figures import FIGURES, LoadPoint, Spread
from loadtest.loads import AXES, ClosedLoop, Load
from loadtest.measure import CURVE_PERCENTS, Distribution
from loadtest.page.charts import Bar, Chart, Point, Series, bar_chart, line_chart, percentile_chart
from loadtest.results import Report, letter

MAX_CURVES = 6  # in one chart
PERCENTS = ("p50", "p90", "p99")


def charts(report: Report) -> list[Chart]:
    if _num_levels(report) > 1:
        drawn = [chart for mix, part in _by_mix(report) for chart in _of_mix(mix, part)]
    else:
        drawn = [*_bars(report)]
    return [*_groups(report), *drawn, *_curves(report), *_roofline(report)]


def _num_levels(report: Report) -> int:
    return len({point.load.level for point in report.points})


def _by_mix(report: Report) -> Iterator[tuple[str, Report]]:
    """What different mixes reach is no line."""
    for mix in dict.fromkeys(_mix(point.load) for point in report.points):
        yield mix, replace(report, measured=tuple(one for one in report.measured if _mix(one.run.load) == mix))


def _of_mix(mix: str, part: Report) -> Iterator[Chart]:
    for chart in _over_loads(part) if _num_levels(part) > 1 else _bars(part):
        yield replace(chart, title=f"{chart.title}, {mix}") if mix else chart


def _mix(load: Load) -> str:
    return load.mix if isinstance(load, ClosedLoop) else ""


def _groups(report: Report) -> Iterator[Chart]:
    for group in report.bars:
        bars = [Bar(row.name, row.value, f"{row.value:.2f}", 0, row.low, row.high, group.ceiling) for row in group.rows]
        if bars:
            yield bar_chart(group.title, bars, group.note)


def _over_loads(report: Report) -> Iterator[Chart]:
    """A report has loads of one kind."""
    axis = AXES[type(report.points[0].load)]
    throughput = [*_series(report, "output_tokens_per_s")]
    yield line_chart("Output throughput", axis, "tok/s", throughput)
    for name, title in (("ttft", "Time to first token"), ("itl", "Inter-token latency")):
        percents = PERCENTS if len(report.subjects) == 1 else ("p50", "p99")
        series = [one for dash, p in enumerate(percents) for one in _series(report, f"{name}_{p}_s", p, dash)]
        if series:
            yield line_chart(title, axis, "ms", series)
    for key in ("goodput_per_s", "padding_waste", "batch_size"):
        if series := [*_series(report, key)]:
            yield line_chart(_title(key), axis, FIGURES[key].unit, series)


def _title(key: str) -> str:
    return {"padding_waste": "Padding waste", "batch_size": "Sequences in a step", "goodput_per_s": "Goodput"}[key]


def _series(report: Report, key: str, percent: str = "", dash: int = 0) -> Iterator[Series]:
    """A line for each server; percentiles of one server have colours, of several dashes."""
    for subject, _ in enumerate(report.subjects):
        its = [point for point in report.points if point.subject == subject]
        known = [(point.load, spread) for point in its if (spread := point.spread(key)) is not None]
        marks = tuple(_mark(load, spread, FIGURES[key].scale) for load, spread in known)
        if marks:
            several = len(report.subjects) > 1
            name = " ".join(filter(None, (letter(subject) if several else "", percent))) or "measured"
            yield Series(name, tuple(sorted(marks, key=lambda p: p.x)), subject if several else dash, dash)


def _mark(load: Load, spread: Spread, scale: float) -> Point:
    return Point(load.level, spread.median * scale, spread.low * scale, spread.high * scale)


def _bars(report: Report) -> Iterator[Chart]:
    """One load: the servers below each other. One server alone has its figures on the page already."""
    if len(report.subjects) == 1:
        return
    for key, title in (
        ("output_tokens_per_s", "Output throughput"),
        ("ttft_p50_s", "Time to first token, p50"),
        ("itl_p50_s", "Inter-token latency, p50"),
        ("batch_size", "Sequences in a step"),
        ("padding_waste", "Padding waste"),
    ):
        bars = [bar for point in report.points if (bar := _bar(report, point, key)) is not None]
        if bars:
            yield bar_chart(f"{title}, {FIGURES[key].unit}", bars)


def _bar(report: Report, point: LoadPoint, key: str) -> Bar | None:
    figure, spread = FIGURES[key], point.spread(key)
    if spread is None:
        return None
    values = (value * figure.scale for value in (spread.median, spread.low, spread.high))
    middle, low, high = values
    return Bar(_bar_name(report, point), middle, f"{figure.show(spread.median)}", point.subject, low, high)


def _bar_name(report: Report, point: LoadPoint) -> str:
    subject = f"{letter(point.subject)}: {report.subjects[point.subject]}"
    mix = _mix(point.load)
    return f"{mix}, {letter(point.subject)}" if mix else subject


def _curves(report: Report) -> Iterator[Chart]:
    """Whole distributions, where there is room for them."""
    if len(report.points) > MAX_CURVES:
        return
    for name, title in (("ttft_s", "TTFT"), ("itl_s", "ITL"), ("tpot_s", "TPOT"), ("e2el_s", "E2EL")):
        series = [
            Series(_point_name(report, point), marks, *_look(report, point))
            for point in report.points
            if (marks := _curve(point, name))
        ]
        if series:
            yield percentile_chart(f"{title} by percentile", "ms", series)


def _point_name(report: Report, point: LoadPoint) -> str:
    if len(report.subjects) == 1:
        return str(point.load)
    several = len({one.load for one in report.points}) > 1
    return letter(point.subject) + (f", {point.load}" if several else "")


def _look(report: Report, point: LoadPoint) -> tuple[int, int]:
    """Colour and dash: loads of one server have colours, of several dashes."""
    place = list(dict.fromkeys(one.load for one in report.points)).index(point.load)
    return (place, 0) if len(report.subjects) == 1 else (point.subject, place % 3)


def _curve(point: LoadPoint, name: str) -> tuple[Point, ...]:
    """The median over the repetitions at each percent, in ms."""
    found: Sequence[Distribution | None] = [getattr(one.summary, name) for one in point.runs]
    curves = [shape.curve for shape in found if shape is not None]
    if len(curves) < len(found):
        return ()
    heights = [median(values) * 1000 for values in zip(*curves, strict=True)]
    return tuple(Point(percent, y, y, y) for percent, y in zip(CURVE_PERCENTS, heights, strict=True))


def _roofline(report: Report) -> Iterator[Chart]:
    bars = [bar for point in report.points if (bar := _roofline_bar(report, point)) is not None]
    if bars:
        note = "Behind each bar: the most that weights, KV cache and matrix products allow at as many in flight."
        yield bar_chart("Output throughput against the roofline, tok/s", bars, note)


def _roofline_bar(report: Report, point: LoadPoint) -> Bar | None:
    share, speed = point.spread("roofline_share"), point.spread("output_tokens_per_s")
    ceiling = Spread.of(one.ceiling_tokens_per_s for one in point.runs)
    if share is None or speed is None or ceiling is None:
        return None
    text = f"{speed.median:,.0f} of {ceiling.median:,.0f} ({share.median:.0%})"
    return Bar(_point_name(report, point), speed.median, text, point.subject, ceiling=ceiling.median)
