"""Durable usage on its way into a shared ledger: as few rows as say the same."""

import json
from collections.abc import Iterable
from datetime import date

from quota.encoding import layer_code
from quota.ledger import PastUsage, require_count
from quota.levels import Level


def by_layer(past: Iterable[PastUsage], today: date) -> list[PastUsage]:
    """The days of this month but today as one, for each layer: what restoring them costs is a matter of layers."""
    this_month, another_day = (today.year, today.month), today.replace(day=1 if today.day > 1 else 2)
    sums: dict[tuple[Level, str, date], tuple[int, int]] = {}
    for row in past:
        if (row.day.year, row.day.month) == this_month:
            key = (row.level, row.name, today if row.day == today else another_day)
            requests, tokens = sums.get(key, (0, 0))
            sums[key] = (requests + row.requests, tokens + row.tokens)
    return [PastUsage(*key, *counts) for key, counts in sums.items()]


def rows(past: Iterable[PastUsage]) -> str:
    """As restore.lua takes them. Raises ValueError for what no ledger can count."""
    encoded = []
    for row in past:
        require_count(row.requests)
        require_count(row.tokens)
        day = (row.day - date(1970, 1, 1)).days
        encoded.append([layer_code(row.level, row.name), day, row.requests, row.tokens])
    return json.dumps(encoded, separators=(",", ":"), ensure_ascii=False)
