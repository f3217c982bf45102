"""`penstock top`: what running servers do, live, from their /metrics and the admin API."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live

from server.cli_common import fail
from server.top.servers import NearLimit, Server, look_at
from server.top.view import screen

KEY = "PENSTOCK_ADMIN_KEY"
WIDTH = 120  # of what no terminal reads


def top(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help="Base URLs; several are shown as one.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print, and end; for scripts.")] = False,
) -> None:
    """Show models, queues, tokens, limits that are nearly reached, and errors of running servers.

    The admin key is read from PENSTOCK_ADMIN_KEY. Ends with Ctrl-C.
    """
    if not (key := os.environ.get(KEY, "")):
        fail(f"{KEY}: expected an admin key, which `penstock keys create --admin` makes")
    servers = [Server(url, key) for url in urls or ["http://127.0.0.1:8000"]]
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        for server in servers:
            stack.callback(server.close)
        looks = _looks(servers, interval)
        if once:
            _print(servers, [next(looks), next(looks)][-1])
        else:
            _show(looks)


def _looks(servers: Sequence[Server], interval: float) -> Iterator[Group]:
    while True:
        look = look_at(servers)
        yield screen(servers, look, _limits(servers))
        time.sleep(interval)


def _limits(servers: Sequence[Server]) -> list[NearLimit]:
    """Servers that share a ledger say the same."""
    return list(dict.fromkeys(near for server in servers if not server.problem for near in server.near_limits()))


def _print(servers: Sequence[Server], shown: Group) -> None:
    """Exit status 1 where no server could be asked."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
    Console(markup=False, emoji=False, highlight=False, width=width).print(shown)
    if all(server.problem for server in servers):
        raise typer.Exit(1)


def _show(looks: Iterator[Group]) -> None:
    console = Console(markup=False, emoji=False, highlight=False)
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        for shown in looks:
            live.update(shown, refresh=True)
