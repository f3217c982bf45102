"""Charts as SVG: lines over the levels of a load, curves of percentiles, and bars. Colours are the page's variables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from loadtest.page.scales import Scale, level_scale, short, value_scale

WIDTH, HEIGHT = 360, 230  # of the view box: about a phone's, so that its text is as large as the page's
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 42
TICK_ROOM = 26  # pixels that a label of the horizontal axis needs
BAR_HEIGHT, BAR_ROOM = 14, 40
WHISKER_GAP, INSET = 4, 10  # between whiskers; of the first and last level from the frame
NUM_COLOURS = 6


@dataclass(frozen=True, slots=True)
class Point:
    """`low` and `high`: the spread over repetitions."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """`colour` counts the page's colours; `dash`: 0 is a full line."""

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    dash: int = 0

    @property
    def style(self) -> str:
        return f"s{self.colour % NUM_COLOURS} d{self.dash}"


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its words. `series` is for the legend, which is HTML, so that it wraps."""

    title: str
    svg: Markup
    series: tuple[Series, ...] = ()
    note: str = ""
    is_bars: bool = False


def line_chart(title: str, x_label: str, unit: str, series: Sequence[Series]) -> Chart:
    """Over the levels of a sweep."""
    levels = [point.x for one in series for point in one.points]
    return _lines(title, x_label, unit, series, level_scale(levels), dots=True)


def percentile_chart(title: str, unit: str, series: Sequence[Series]) -> Chart:
    """`x` of the points are percents."""
    across = Scale(0, 100, (0, 25, 50, 75, 90, 100))
    return _lines(title, "percentile", unit, series, across, dots=False)


def _lines(title: str, x_label: str, unit: str, series: Sequence[Series], across: Scale, *, dots: bool) -> Chart:
    values = [value for one in series for point in one.points for value in (point.low, point.high)]
    # Of a whole distribution the least may well be 0, where events came together: it lies on the axis.
    up = value_scale(values if dots else filter(None, values))
    frame = _Frame(across, up)
    y_label = unit + (" (log scale)" if up.is_log else "")
    body = [*frame.axes(x_label + (" (log scale)" if across.is_log else ""), y_label)]
    for index, one in enumerate(series):
        body.append(frame.line(one))
        if dots:
            body += frame.dots(one, unit, WHISKER_GAP * (index - (len(series) - 1) / 2))
    shown = tuple(series) if len(series) > 1 else ()
    return Chart(title, _svg(HEIGHT, f"{title}, {unit} over {x_label}", body), shown)


@dataclass(frozen=True, slots=True)
class _Frame:
    across: Scale
    up: Scale

    def x(self, value: float) -> float:
        return LEFT + INSET + self.across.place(value) * (WIDTH - LEFT - RIGHT - 2 * INSET)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.up.place(value) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str) -> Iterable[Markup]:
        for tick in self.up.ticks:
            yield _line("grid", LEFT, self.y(tick), WIDTH - RIGHT, self.y(tick))
            yield _text("tick end", LEFT - 6, self.y(tick) + 4, short(tick))
        last = -TICK_ROOM * 1.0
        for tick in self.across.ticks:
            if self.x(tick) - last >= TICK_ROOM or tick == self.across.ticks[0]:
                last = self.x(tick)
                yield _text("tick middle", last, HEIGHT - BOTTOM + 16, short(tick))
        yield _line("axis", LEFT, self.y(self.up.low), WIDTH - RIGHT, self.y(self.up.low))
        yield _text("label middle", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label)
        yield Markup('<text class="label middle" transform="translate(11,{:.0f}) rotate(-90)">{}</text>').format(
            (TOP + HEIGHT - BOTTOM) / 2, y_label
        )

    def line(self, series: Series) -> Markup:
        path = " ".join(f"{self.x(p.x):.1f},{self.y(p.y):.1f}" for p in series.points)
        return Markup('<polyline class="line {}" points="{}"/>').format(series.style, path)

    def dots(self, series: Series, unit: str, aside: float) -> Iterable[Markup]:
        """With what each says when it is pointed at. `aside`: how far off a whisker stands, to be clear of others."""
        for point in series.points:
            x, words = self.x(point.x), f"{series.name}, {short(point.x)}: {short(point.y)} {unit}"
            if point.high > point.low:
                yield _line(f"whisker {series.style}", x + aside, self.y(point.low), x + aside, self.y(point.high))
                words += f" ({short(point.low)} to {short(point.high)})"
            yield Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.2"><title>{}</title></circle>').format(
                series.style, x, self.y(point.y), words
            )


@dataclass(frozen=True, slots=True)
class Bar:
    """`ceiling`: what it might have been, drawn behind it."""

    name: str
    value: float
    text: str
    colour: int = 0
    low: float | None = None
    high: float | None = None
    ceiling: float | None = None


def bar_chart(title: str, bars: Sequence[Bar], note: str = "") -> Chart:
    """One below the other, each under its name, from 0."""
    most = max([0.0, *(max(bar.value, bar.high or 0, bar.ceiling or 0) for bar in bars)]) or 1.0
    body = [mark for index, bar in enumerate(bars) for mark in _bar(bar, 8 + index * BAR_ROOM, most)]
    return Chart(title, _svg(8 + len(bars) * BAR_ROOM, title, body), note=note, is_bars=True)


def _bar(bar: Bar, top: float, most: float) -> Iterable[Markup]:
    def length(value: float) -> float:
        return value / most * (WIDTH - 4)

    yield _text("name", 2, top + 10, bar.name if len(bar.name) <= 34 else bar.name[:33] + "…")
    yield _text("value end", WIDTH - 2, top + 10, bar.text)
    rect = Markup('<rect class="{}" x="2" y="{:.1f}" width="{:.1f}" height="{}" rx="2"><title>{}</title></rect>')
    if bar.ceiling is not None:
        yield rect.format("ceiling", top + 16, length(bar.ceiling), BAR_HEIGHT, f"at best {short(bar.ceiling)}")
    words = f"{bar.name}: {bar.text}"
    yield rect.format(f"bar s{bar.colour % NUM_COLOURS}", top + 16, max(1.0, length(bar.value)), BAR_HEIGHT, words)
    if bar.low is not None and bar.high is not None and bar.high > bar.low:
        middle = top + 16 + BAR_HEIGHT / 2
        yield _line("whisker on-bar", 2 + length(bar.low), middle, 2 + length(bar.high), middle)


def _svg(height: float, label: str, body: Iterable[Markup]) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(WIDTH, height, label)
    return opening + Markup("").join(body) + Markup("</svg>")


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    line = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return line.format(style, x1, y1, x2, y2)


def _text(style: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, text)
