"""The page itself, from a template beside this file."""

from collections.abc import Iterable

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from loadtest.comparison import COMPARED, Ratio
from loadtest.figures import FIGURES, Spread
from loadtest.measure import SLO
from loadtest.page.plots import charts
from loadtest.results import METHOD, Report, Table, letter, machine, subject_lines

TILES = (
    "output_tokens_per_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "itl_p50_s",
    "itl_p99_s",
    "padding_waste",
    "ungrouped_waste",
    "roofline_share",
)


def html_page(report: Report) -> str:
    """A whole document without a script or a link to another file. Everything that comes from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("loadtest.page", "."),
        autoescape=select_autoescape(("jinja",), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        report=report,
        subjects=subject_lines(report.subjects),
        tiles=_tiles(report),
        charts=charts(report) if report.points else [],
        tables=[*_comparison(report), *report.tables, *_figures(report), _failures(report)],
        settings=_settings(report),
        method=METHOD,
    )


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Label, value and unit, of a report on one point."""
    if len(report.points) != 1:
        return []
    spreads = {key: report.points[0].spread(key) for key in TILES}
    return [
        (FIGURES[key].label, FIGURES[key].show(spread.median), FIGURES[key].unit)
        for key, spread in spreads.items()
        if spread is not None
    ]


def _comparison(report: Report) -> Iterable[Table]:
    if not report.ratios:
        return
    columns = ("load", "", *(FIGURES[key].label for key in COMPARED))
    rows = tuple(_ratio_row(ratio) for ratio in report.ratios)
    note = (
        "Each figure of the later server over that of the run of A beside it: the median over the rounds, with the "
        "least and the largest. Above 1 is more tokens, or longer times."
    )
    yield Table("Ratios", columns, rows, note)


def _ratio_row(ratio: Ratio) -> tuple[str, ...]:
    cells = (_ratio_cell(ratio.spreads.get(key)) for key in COMPARED)
    return (str(ratio.load), f"{letter(ratio.subject)} / A", *cells)


def _ratio_cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return f"{spread.median:.2f}" + (f" ({spread.low:.2f}–{spread.high:.2f})" if spread.count > 1 else "")


def _figures(report: Report) -> Iterable[Table]:
    """A column for each load of each server: there are more figures than loads."""
    points = report.points
    keys = [key for key in FIGURES if any(point.spread(key) for point in points)]
    several = len(report.subjects) > 1
    columns = ("", *(str(point.load) + (f", {letter(point.subject)}" if several else "") for point in points))
    rows = tuple((_name(key), *(_cell(key, point.spread(key)) for point in points)) for key in keys)
    repeats = max((len(point.runs) for point in points), default=0)
    note = f"Medians over {repeats} runs, with the least and the largest." if repeats > 1 else ""
    yield Table("Figures", columns, rows, note)


def _name(key: str) -> str:
    return ", ".join(filter(None, (FIGURES[key].label, FIGURES[key].unit)))


def _cell(key: str, spread: Spread | None) -> str:
    figure = FIGURES[key]
    if spread is None or spread.count == 1 or spread.low == spread.high:
        return figure.show(spread.median if spread else None)
    return f"{figure.show(spread.median)} ({figure.show(spread.low)}–{figure.show(spread.high)})"


def _failures(report: Report) -> Table:
    rows = tuple(
        (str(one.run.load), letter(one.run.plan.subject), reason, str(count))
        for one in report.measured
        for reason, count in one.summary.failures.items()
    )
    return Table("Failures", ("load", "server", "reason", "requests"), rows)


def _settings(report: Report) -> list[tuple[str, str]]:
    config = report.config
    pairs: dict[str, object] = {
        "Workload": config.workload.name,
        **{key.replace("_", " "): value for key, value in config.workload.describe().items()},
        "requests a run": f"{config.num_requests}, after {_warmups(report)} for warm-up",
        "endpoint": config.target.endpoint,
        "seed": config.seed,
        "SLO": _slo(report.slo),
        "load generator": ", ".join(f"{key} {value}" for key, value in machine().items()),
        "server's counters": "read" if config.metrics else "not read: padding waste and batch sizes need --admin-key",
    }
    return [(key, str(value)) for key, value in pairs.items()]


def _warmups(report: Report) -> str:
    counts = sorted({one.run.plan.config.num_warmup for one in report.measured})
    return " or ".join(map(str, counts))


def _slo(slo: SLO) -> str:
    bounds = {"TTFT": slo.ttft_s, "TPOT": slo.tpot_s, "E2EL": slo.e2el_s}
    return ", ".join(f"{name} ≤ {value * 1000:g} ms" for name, value in bounds.items() if value is not None) or "none"
