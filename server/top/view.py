"""The tables of `penstock top`."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from server.cli_quota import short
from server.top.figures import EventFigures, Look, ModelFigures, events, models
from server.top.servers import NearLimit, Server

NOTHING = "-"
FULL = 0.9  # of the KV memory


def screen(servers: Sequence[Server], look: Look, limits: Sequence[NearLimit]) -> Group:
    parts: list[RenderableType] = [_head(servers, look), _models(models(look))]
    if limits:
        parts += [Text(), _limits(limits)]
    if rows := events(look):
        parts += [Text(), _events(rows)]
    return Group(*parts)


def _head(servers: Sequence[Server], look: Look) -> Text:
    connections = int(look.now.total("penstock_connections"))
    text = Text(f"{connections} connections, rates over {look.seconds:.1f} s\n")
    for server in servers:
        text.append(server.url)
        if server.problem:
            text.append(f"  {server.problem}", style="bold red")
        elif (up := server.seen) is not None and up.total("penstock_quota_ledger_up") == 0:
            text.append("  the ledger of quotas is away", style="bold yellow")
        text.append("\n")
    return text


def _models(rows: Sequence[ModelFigures]) -> Table:
    """80 columns are enough: a name that is long is wrapped. "up": replicas; "gap": between tokens; "hits": of prompt
    tokens in the prefix cache."""
    numbers = ("up", "run", "wait", "req/s", "in t/s", "out t/s", "TTFT", "p95", "gap", "KV", "hits")
    table = _table(Column("model", overflow="fold", min_width=8), *map(_right, numbers))
    for row in rows:
        table.add_row(
            row.name if row.state == "ready" else Text(f"{row.name} {row.state}", style="bold yellow"),
            _replicas(row),
            str(row.running),
            Text(str(row.waiting), style="bold yellow" if row.waiting else ""),
            _rate(row.requests),
            _rate(row.tokens_in),
            _rate(row.tokens_out),
            *map(_time, (row.first_token_p50, row.first_token_p95, row.gap_p50)),
            Text(_percent(row.kv_use), style="bold yellow" if (row.kv_use or 0) >= FULL else ""),
            _percent(row.cache_hits),
        )
    return table


def _replicas(row: ModelFigures) -> Text:
    """Ready ones of all; those that take only probes are told."""
    aside = f" (-{row.set_aside})" if row.set_aside else ""
    is_well = row.ready == row.replicas and not aside
    return Text(f"{row.ready}/{row.replicas}{aside}", style="" if is_well else "bold red")


def _limits(rows: Sequence[NearLimit]) -> Table:
    columns = [Column(title, overflow="fold") for title in ("near a limit", "level", "name", "limit")]
    table = _table(*columns, *map(_right, ("used", "of", "%")))
    for row in sorted(rows, key=lambda row: (-row.used / max(row.limit, 1), row.account)):
        percent = 100 * row.used // row.limit if row.limit else 100
        kind = f"{row.dimension} (shadow)" if row.shadow else row.dimension
        numbers = (short(row.used), short(row.limit), str(percent))
        table.add_row(row.account, row.level, row.name, kind, *numbers, style="bold red" if percent >= 100 else "")
    return table


def _events(rows: Sequence[EventFigures]) -> Table:
    table = _table("what", Column("code", overflow="fold"), *map(_right, ("/min", "in all")))
    for row in rows:
        style = "bold yellow" if row.per_minute else "dim"
        table.add_row(row.what, row.code, _rate(row.per_minute), short(row.total), style=style)
    return table


def _table(*columns: Column | str) -> Table:
    return Table(*columns, box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _right(title: str) -> Column:
    return Column(title, justify="right", no_wrap=True)


def _rate(number: float) -> str:
    return f"{number:.1f}" if 0 < number < 10 else short(round(number))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{1000 * seconds:.0f}ms" if seconds < 1 else f"{seconds:.3g}s"


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.0f}%"
