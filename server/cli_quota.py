"""`penstock quota`: how the limits of an account stand, on the database itself, whether a server runs or not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from quota.ledger import Ledger, LedgerUnavailable
from quota.levels import Kind
from quota.standing import Standing
from server.cli_common import ConfigOption, DataDirOption, read_settings, run, with_store
from server.ledgers import open_embedded, open_shared
from server.plans import PlanBook
from server.settings import Settings
from server.settings_layers import SettingsError
from server.standings import account_standings
from server.store import Store, StoreError
from server.store.records import Account, UsageDimension, UsageSum, utc_now

quota = typer.Typer(help="Show how limits stand.", no_args_is_help=True, pretty_exceptions_enable=False)

UNKNOWN = "-"
EXACT = 10_000  # numbers below are shown in full
SIZES = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
TIMES = ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))


@dataclass(frozen=True, slots=True)
class Report:
    """`is_live`: rates and concurrency are known too, since the ledger is one that all gateways share."""

    account: Account
    standings: Sequence[Standing]
    usage: Sequence[UsageSum]  # of this month, by model
    is_live: bool


@quota.command()
def show(
    account: Annotated[str, typer.Argument(help="Its name or id.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show an account's limits, how much of them is used, and this month's usage by model.

    Limits at 80 % or more are highlighted and marked with "!"; those in shadow refuse nothing.
    """
    settings = read_settings(config, {"data_dir": data_dir})

    async def work(store: Store) -> Report:
        return await _report(store, settings, account)

    report = run(lambda: with_store(settings, work), StoreError, SettingsError)
    _print(report, Console(markup=False, emoji=False, highlight=False))


async def _report(store: Store, settings: Settings, name: str) -> Report:
    account = await store.accounts.get(name)
    if account is None:
        raise StoreError(f"no account is called {name}")
    plans = PlanBook(settings.quota.plans, store.plans)
    await plans.read()
    try:
        async with _ledger(store, settings, account) as ledger:
            standings = await account_standings(account, plans, store, ledger)
    except LedgerUnavailable as error:
        raise SettingsError(f"server.redis_url: {error}") from error
    first_of_month = utc_now().date().replace(day=1)
    usage = await store.usage.sums([UsageDimension.MODEL], account_id=account.id, since=first_of_month)
    return Report(account, standings, usage, is_live=bool(settings.server.redis_url))


@contextlib.asynccontextmanager
async def _ledger(store: Store, settings: Settings, account: Account) -> AsyncIterator[Ledger]:
    """The shared one; without it, what an embedded one knows at its start: the budgets."""

    async def nothing_waits() -> None:
        """No usage waits in this process."""

    ledger: Ledger
    if settings.server.redis_url:
        ledger = await open_shared(settings, store, nothing_waits)
    else:
        ledger = await open_embedded(store, account.id)
    try:
        yield ledger
    finally:
        await ledger.close()


def _print(report: Report, console: Console) -> None:
    account = report.account
    console.print(f"Account {account.name} ({account.id}), plan {account.plan}\n")
    console.print(_limits(report) if report.standings else "Nothing is limited.")
    if not report.is_live and any(not _is_known(row, report) for row in report.standings):
        route = f"GET /admin/v1/accounts/{account.name}/limits"
        console.print(f"\n{UNKNOWN} is counted in the server's memory: {route}", soft_wrap=True)
    console.print()
    console.print(_usage(report) if report.usage else "No usage this month.")


def _limits(report: Report) -> Table:
    """80 columns are enough: names that are long are wrapped, and nothing is cut off."""
    words = [Column("level", no_wrap=True), Column("name", overflow="fold"), Column("kind", no_wrap=True)]
    table = _table(*words, *map(_numbers, ("limit", "used", "left", "%", "whole in")))
    for row in report.standings:
        is_known = _is_known(row, report)
        kind = f"{row.dimension}\n(shadow)" if row.shadow else row.dimension
        counts = (short(row.used), short(row.remaining), _percent(row), wait(row.reset_ms))
        shown = counts if is_known else (UNKNOWN,) * len(counts)
        style = "bold yellow" if is_known and row.is_near else None
        table.add_row(row.level, row.name, kind, short(row.limit), *shown, style=style)
    return table


def _is_known(row: Standing, report: Report) -> bool:
    return report.is_live or row.dimension.kind is Kind.BUDGET


def _percent(row: Standing) -> str:
    percent = 100 * row.used // row.limit if row.limit else 100
    return f"{percent}{' !' if row.is_near else ''}"


def _usage(report: Report) -> Table:
    counts = ("requests", "prompt", "cached", "completion")
    table = _table(Column("this month", overflow="fold"), *map(_numbers, counts))
    for row in report.usage:
        numbers = (row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens)
        table.add_row(f"{row.model}@{row.version}", *map(short, numbers))
    return table


def _table(*columns: Column) -> Table:
    return Table(*columns, box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _numbers(title: str) -> Column:
    return Column(title, justify="right", no_wrap=True)


def short(number: int) -> str:
    """9999, 12.3k, 5M: three digits or so."""
    if number < EXACT:
        return str(number)
    size, unit = next((size, unit) for size, unit in SIZES if number >= size)
    return f"{number / size:.2f}".rstrip("0").rstrip(".") + unit


def wait(milliseconds: int | None) -> str:
    """now, 42s, 5m 3s, 11h 59m, 21d 12h; rounded up to a second."""
    if milliseconds is None:
        return UNKNOWN
    seconds = math.ceil(milliseconds / 1000)
    for size, unit, smaller, small_unit in TIMES:
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // smaller}{small_unit}"
    return f"{seconds}s" if seconds else "now"
