"""The servers that are asked, with an administrator's key."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from quota.admission import NEAR_PERCENT
from server.top.figures import Look
from server.top.samples import Samples

MAX_ACCOUNTS = 16  # whose limits are asked for: those that used most today
LIMITS_EVERY = 5.0  # seconds


@dataclass(slots=True, frozen=True)
class Seen:
    at: float  # by the monotonic clock
    samples: Samples


@dataclass(slots=True, frozen=True)
class NearLimit:
    account: str
    level: str
    name: str
    dimension: str
    used: int
    limit: int
    shadow: bool


class Server:
    """One gateway, or those behind one address. `problem`: why the last look showed nothing; "" when it did."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=5)
        self._before: Seen | None = None
        self._seen: Seen | None = None
        self._limits: list[NearLimit] = []
        self._limits_at = -LIMITS_EVERY
        self.problem = ""

    def close(self) -> None:
        self._client.close()

    def look(self) -> None:
        try:
            text = self._get("/metrics").text
        except httpx.HTTPError as error:
            self._before = self._seen = None
            self.problem = _problem(error)
        else:
            self._before, self._seen = self._seen, Seen(time.monotonic(), Samples.parse(text))
            self.problem = ""

    def near_limits(self) -> list[NearLimit]:
        """Of the accounts that used most today. They are the same on all gateways that share a ledger."""
        if time.monotonic() - self._limits_at >= LIMITS_EVERY:
            try:
                self._limits = list(self._ask_for_limits())
            except httpx.HTTPError as error:
                self._limits, self.problem = [], _problem(error)
            self._limits_at = time.monotonic()
        return self._limits

    def _ask_for_limits(self) -> Iterator[NearLimit]:
        params = {"group_by": "account", "since": datetime.now(UTC).date().isoformat()}
        groups = self._get("/admin/v1/usage", params).json()["data"]
        busiest = sorted(groups, key=_tokens, reverse=True)[:MAX_ACCOUNTS]
        for group in busiest:
            answer = self._get(f"/admin/v1/accounts/{group['account_id']}/limits").json()
            for row in answer["limits"]:
                if 100 * row["used"] >= NEAR_PERCENT * row["limit"]:
                    fields = {name: row[name] for name in ("level", "name", "dimension", "used", "limit", "shadow")}
                    yield NearLimit(answer["account"], **fields)

    def _get(self, path: str, params: dict[str, str] | None = None) -> httpx.Response:
        return self._client.get(path, params=params).raise_for_status()

    @property
    def seen(self) -> Samples | None:
        return None if self._seen is None else self._seen.samples

    @property
    def gained(self) -> tuple[Samples, float] | None:
        """And in how many seconds."""
        if self._before is None or self._seen is None:
            return None
        return self._seen.samples.since(self._before.samples), self._seen.at - self._before.at


def look_at(servers: Sequence[Server]) -> Look:
    """All of them together."""
    for server in servers:
        server.look()
    gained = [each for server in servers if (each := server.gained) is not None]
    return Look(
        now=Samples.sum(samples for server in servers if (samples := server.seen) is not None),
        gained=Samples.sum(samples for samples, _ in gained),
        seconds=max((seconds for _, seconds in gained), default=1.0),
    )


def _tokens(group: dict[str, Any]) -> int:
    used: int = group["prompt_tokens"] + group["completion_tokens"]
    return used


def _problem(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return {401: "the key is not known here", 403: "this needs an admin key"}.get(
            error.response.status_code, f"it answered {error.response.status_code}"
        )
    return f"can't be reached: {type(error).__name__}"
