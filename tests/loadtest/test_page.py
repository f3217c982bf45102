"""The HTML report: one whole file, whatever was measured."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from loadtest.loads import ClosedLoop
from loadtest.page.page import html_page
from loadtest.page.plots import charts
from loadtest.page.scales import level_scale, short, value_scale
from loadtest.results import BarGroup, BarRow, Report, Table
from tests.loadtest.reports import report, run, sweep, versus

VOID = {"meta"}


class Reader(HTMLParser):
    """Its text; that every element that was opened is closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def titles(of: Report) -> list[str]:
    return [chart.title for chart in charts(of)]


@pytest.mark.parametrize("made", [sweep(), versus(), report(run(ClosedLoop(1), 0.01))], ids=["sweep", "versus", "one"])
def test_a_page_needs_nothing_else(made: Report) -> None:
    page = html_page(made)
    tags = Reader(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object"}
    assert not [name for _, attributes in tags for name in attributes if name in ("src", "href") or name[:2] == "on"]
    assert "url(" not in page
    assert "@import" not in page
    assert "secret-key" not in page
    assert not re.search(r'"[^"]*\bnan\b[^"]*"', page)


def test_a_sweep_has_its_plots() -> None:
    wanted = ["Output throughput", "Time to first token", "Inter-token latency", "Goodput", "Padding waste"]
    assert titles(sweep())[:5] == wanted
    assert "Output throughput against the roofline, tok/s" in titles(sweep())


def test_numbers_on_the_page_are_those_of_the_runs() -> None:
    text = Reader(html_page(sweep())).text
    assert "100.0" in text  # tok/s at one concurrent
    assert "160.0" in text  # ms to the first token at sixteen
    assert re.search(r"padding waste, %\s*10.0", text, re.I)


def test_servers_side_by_side() -> None:
    page = html_page(versus())
    assert "B / A" in page
    assert "3.00 (2.00–4.00)" in page
    assert "&lt;other&gt; &amp; co" in page
    assert "<other>" not in page


def test_what_a_server_says_is_escaped() -> None:
    page = html_page(report(run(ClosedLoop(1), 0.01, failed=2)))
    assert "&lt;b&gt;refused&lt;/b&gt;" in page
    assert "<b>refused" not in page
    assert "2 of 3 requests failed at 1 concurrent." in page


def test_an_interrupted_run_alone_has_no_plot_and_says_so() -> None:
    made = report(run(ClosedLoop(1), 0.01, interrupted=True))
    assert charts(made) == []
    assert "Interrupted" in html_page(made)


def test_tables_of_its_own() -> None:
    made = report(run(ClosedLoop(1), 0.01))
    extra = Report("t", ("m",), made.measured, tables=(Table("Extra", ("a", "b"), (("x < y", "1"),), "why"),))
    text = Reader(html_page(extra)).text
    assert "Extra" in text
    assert "x < y" in text


def test_no_point_lies_outside_its_drawing() -> None:
    for chart in (*charts(sweep()), *charts(versus())):
        places = re.findall(r'c([xy])="([-\d.]+)"', chart.svg)
        assert all(0 <= float(value) <= (360 if axis == "x" else 230) for axis, value in places)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([3.0], (0, 1, 2, 3)),
        ([0.9, 7.0], (0, 2, 4, 6, 8)),
        ([130.0], (0, 50, 100, 150)),
        ([0.0], (0, 1)),
        ([0.0, 1.0, 900.0], (0, 250, 500, 750, 1000)),
        ([1.0, 900.0], (1, 10, 100, 1000)),
        ([1e-9, 900.0], (0.1, 1, 10, 100, 1000)),
    ],
)
def test_ticks_are_round_and_hold_the_values(values: list[float], ticks: tuple[float, ...]) -> None:
    scale = value_scale(values)
    assert scale.ticks == pytest.approx(ticks)
    assert all(0 <= scale.place(value) <= 1 for value in values)


def test_levels_that_double_are_evenly_apart() -> None:
    scale = level_scale([1, 4, 16])
    assert [scale.place(level) for level in (1, 4, 16)] == pytest.approx([0, 0.5, 1])
    assert level_scale([1, 2, 3]).place(2) == 0.5
    assert level_scale([8]).place(8) == 0.5


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.25, "0.25"), (1500, "1,500"), (25_000, "25k"), (2e6, "2M")])
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_mixes_have_charts_of_their_own() -> None:
    loads = [ClosedLoop(level, mix) for mix in ("short", "long") for level in (1, 4)] + [ClosedLoop(1, "lone")]
    both = [run(load, 0.01, subject=i) for load in loads for i in range(2)]
    found = titles(report(*both, subjects=("one", "other")))
    assert {"Output throughput, short", "Output throughput, long", "Output throughput, tok/s, lone"} <= set(found)


def test_bars_of_its_own() -> None:
    group = BarGroup("Ratios", (BarRow("one / other", 1.5, 1.4, 1.6),), ceiling=1.0)
    page = Reader(html_page(replace(sweep(), bars=(group,))))
    for words in ("Ratios", "one / other", "1.50", "at best 1"):
        assert words in page.text
