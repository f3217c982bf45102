"""What becomes of a report: the terminal, and the files asked for."""

import json
from pathlib import Path

from rich.console import Console

from loadtest.report import print_report
from loadtest.results import Report, as_document

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def deliver(report: Report, json_file: Path | None, html_file: Path | None) -> int:
    """Answers the process's exit code."""
    print_report(Console(highlight=False), report)
    if json_file is not None:
        json_file.write_text(json.dumps(as_document(report), indent=2) + "\n", encoding="utf-8")
    if html_file is not None:
        from loadtest.page.page import html_page  # its template engine loads slowly

        html_file.write_text(html_page(report), encoding="utf-8")
    if any(one.run.result.interrupted for one in report.measured):
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(one.summary.num_failed for one in report.measured) else 0
