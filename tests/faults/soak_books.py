"""What a soak's requests were charged, by the ledger, by the rows of what was used, and by what clients were told."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.clients import Tenant, until
from tests.faults.visits import Visit
from tests.penstock_process import ADMIN_KEY

TWO_LEASES = 60.0  # seconds


@dataclass(slots=True, frozen=True)
class Row:
    """Of what was used."""

    request_id: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def rows_of(tenant: Tenant, folder: Path) -> list[Row]:
    columns = ", ".join(Row.__dataclass_fields__)
    with contextlib.closing(sqlite3.connect(folder / "data" / "penstock.db")) as database:
        found = database.execute(f"SELECT {columns} FROM usage WHERE account_id = ?", (tenant.id,))  # noqa: S608
        return [Row(*row) for row in found]


def ledger_of(tenant: Tenant) -> dict[str, int]:
    """What is used of each limit of the account, by the admin API."""
    with tenant.server.http(ADMIN_KEY) as admin:
        answer = admin.get(f"/admin/v1/accounts/{tenant.id}/limits").raise_for_status().json()
    return {row["dimension"]: row["used"] for row in answer["limits"] if row["level"] == "account"}


def holds_nothing(tenant: Tenant) -> bool:
    """Asked of a ledger that may just have been started again."""
    try:
        return ledger_of(tenant)["concurrent"] == 0
    except httpx.HTTPStatusError:
        return False


async def check_books(tenant: Tenant, visits: list[Visit]) -> dict[str, float]:
    """The ledger, the rows and what clients were told are one number; what nobody was told is in the first two."""
    finished = await asyncio.to_thread(tenant.server.metric, "penstock_requests_total")
    await until(lambda: len(rows_of(tenant, tenant.server.folder)) >= finished, "the rows")
    rows = rows_of(tenant, tenant.server.folder)
    began = time.monotonic()
    await until(lambda: holds_nothing(tenant), "the end of all leases", TWO_LEASES)
    ledger, used = ledger_of(tenant), sum(row.tokens for row in rows)
    assert len(rows) == finished
    assert ledger["tokens_per_day"] == used
    assert ledger["requests_per_day"] == sum(row.tokens > 0 for row in rows)  # what was not begun is no request
    told = check_told(visits, rows)
    return {
        "tokens_charged": used,
        "of_them_told": told,
        "ledger_minus_rows": ledger["tokens_per_day"] - used,
        "s_until_no_lease_was_left": time.monotonic() - began,
    }


def check_told(visits: list[Visit], rows: list[Row]) -> int:
    """Tokens that clients were told of."""
    by_id = {row.request_id: row for row in rows}
    for visit in visits:
        if visit.status == 200 and visit.request_id:
            row = by_id.pop(visit.request_id)
            assert visit.usage in (None, (row.prompt_tokens, row.completion_tokens)), (visit, row)
            assert row.completion_tokens >= len(visit.text)
    # A WebSocket's requests have ids of their own, and who left early enough knows none.
    told = Counter(visit.usage for visit in visits if visit.kind == "chat socket" and visit.usage)
    others = Counter((row.prompt_tokens, row.completion_tokens) for row in by_id.values())
    assert not told - others, "nobody was charged for these"
    without_id = sum(not visit.request_id and visit.kind not in ("malformed", "noise") for visit in visits)
    failed = sum(bool(visit.request_id) and visit.status != 200 for visit in visits)
    assert len(by_id) <= without_id + failed, "rows of no request"
    return sum(sum(visit.usage) for visit in visits if visit.usage)
