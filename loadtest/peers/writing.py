"""What becomes of an outcome: the terminal, JSON, and the page with its charts."""

import json
import sys
from pathlib import Path

from rich.console import Console

from loadtest.peers import regression
from loadtest.peers.outcome import Outcome
from loadtest.peers.tables import tables
from loadtest.report import plain_table
from loadtest.results import BarGroup, BarRow, Report, as_document

FILE_WIDTH = 140  # of a table, where no terminal bounds it
TITLE = "Penstock beside its peers: a random model of Qwen3-0.6B's shape"


def deliver(outcome: Outcome, json_file: Path | None, html_file: Path | None) -> None:
    report = report_of(outcome)
    if json_file is not None:
        json_file.write_text(json.dumps(document(outcome, report), indent=2) + "\n", encoding="utf-8")
    if html_file is not None:
        from loadtest.page.page import html_page  # its template engine loads slowly

        html_file.write_text(html_page(report), encoding="utf-8")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    for table in report.tables:
        console.print(plain_table(table))


def report_of(outcome: Outcome) -> Report:
    labels = tuple(f"{spec.name}: {spec.label}" for spec in outcome.specs)
    return Report(TITLE, labels, tuple(outcome.measured), tables=tuple(tables(outcome)), bars=(_bars(outcome),))


def document(outcome: Outcome, report: Report) -> dict[str, object]:
    return {
        **as_document(report),
        "ratios": regression.as_json(outcome.ratios),
        "floors": {
            "bytes_per_s": outcome.floors.bytes_per_s,
            "flop_per_s": outcome.floors.flop_per_s,
            "loopback_tokens_per_s": outcome.floors.loopback.tokens_per_s,
            "loopback_ttft_p50_s": outcome.floors.loopback.ttft_p50_s,
        },
        "peak_rss_bytes": outcome.peaks,
    }


def _bars(outcome: Outcome) -> BarGroup:
    """1 is the line: Penstock as fast as its peer, of the ratios of speeds."""
    rows = tuple(
        BarRow(ratio.name, ratio.spread.median, ratio.spread.low, ratio.spread.high)
        for ratio in outcome.results.of_pairs()
        if ratio.more_is_better
    )
    note = "Medians of the rounds, with the least and the largest; behind each bar stands 1, as fast as the peer."
    return BarGroup("Speed over that of its peers", rows, note, ceiling=1.0)
