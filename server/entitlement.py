"""Quota as the wire sees it: which layers a request touches, OpenAI's headers, and the refusals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from quota.ledger import CostAboveLimit, Ledger, QuotaDecision, QuotaUnavailable, Refusal, Remaining
from quota.levels import Kind, Layer, Unit
from quota.standing import Standing, standings
from server.auth import Principal
from server.errors import InvalidRequest, Overloaded, PermissionDenied, RateLimited
from server.plans import PlanBook, key_limits

CONCURRENCY_RETRY_MS = 1000  # nobody knows when a running request ends; a second is a polite guess
QUOTA_RETRY_MS = 2000  # about what the shared ledger needs to come back


@dataclass(slots=True, frozen=True)
class Grant:
    """An admitted request: its lease, and the headers that its answer carries."""

    lease_id: str
    account: str
    layers: tuple[Layer, ...]
    tokens: int
    headers: dict[str, str]


class Entitlement:
    """Asks the ledger for one request at a time. `observe` is told of every decision, for the metrics."""

    def __init__(self, ledger: Ledger, plans: PlanBook, observe: Callable[[QuotaDecision], None]) -> None:
        self._ledger = ledger
        self._plans = plans
        self._observe = observe

    def layers(self, principal: Principal, model: str, version: str, features: Collection[str]) -> tuple[Layer, ...]:
        """The limits that hold for one request. Raises PermissionDenied for a feature that the key does not have."""
        for feature in sorted(features):
            if not principal.may_use_feature(feature):
                raise PermissionDenied(f"This API key may not use '{feature}'.")
        return self._layers(principal, model, version, features)

    def _layers(self, principal: Principal, model: str, version: str, features: Collection[str]) -> tuple[Layer, ...]:
        plan = self._plans.effective(principal.plan, principal.overrides)
        return plan.layers(principal.key_id, model, version, features, key_limits(principal.limits))

    async def reserve(self, lease_id: str, account: str, layers: tuple[Layer, ...], tokens: int) -> Grant:
        """Raises RateLimited, or InvalidRequest when no wait would ever admit it."""
        try:
            decision = await self._ledger.reserve(lease_id, account, layers, tokens)
        except CostAboveLimit as error:
            raise InvalidRequest(_sentence(str(error)), code="request_above_limit") from error
        except QuotaUnavailable as error:
            raise quota_unavailable() from error
        headers = limit_headers(decision.remaining)
        self._observe(decision)
        if decision.refusal is not None:
            raise refused(decision.refusal, headers)
        return Grant(lease_id, account, layers, tokens, headers)

    async def settle(self, grant: Grant, tokens: int) -> None:
        await self._ledger.settle(grant.lease_id, grant.account, tokens)

    async def release(self, grant: Grant) -> None:
        await self._ledger.release(grant.lease_id, grant.account)

    async def headers(self, principal: Principal) -> dict[str, str]:
        """What is left to the account and the key, for an answer that costs nothing."""
        layers = self._layers(principal, "", "", ())
        return limit_headers(await self._ledger.peek(principal.account_id, layers))

    async def standings(self, principal: Principal) -> list[Standing]:
        """How every limit of the account and of this key stands. Raises LedgerUnavailable."""
        plan = self._plans.effective(principal.plan, principal.overrides)
        usage = await self._ledger.usage(principal.account_id)
        return standings(plan, {principal.key_id: key_limits(principal.limits)}, usage)


def refused(refusal: Refusal, headers: Mapping[str, str]) -> RateLimited:
    """The 429: a spent budget tells the SDK not to retry, a rate tells it when."""
    layer = f"{refusal.level} '{refusal.name}'" if refusal.name else str(refusal.level)
    dimension = refusal.dimension
    if dimension.kind is Kind.BUDGET:
        return RateLimited(
            f"Quota of the {layer} exceeded: {refusal.limit} {dimension.replace('_', ' ')}.",
            type="insufficient_quota",
            code="insufficient_quota",
            headers={**headers, "x-should-retry": "false"},
            retry_after_ms=refusal.retry_after_ms,
        )
    wait = CONCURRENCY_RETRY_MS if refusal.retry_after_ms is None else refusal.retry_after_ms
    what = "concurrent requests" if dimension.kind is Kind.GAUGE else f"{dimension.unit} per minute ({dimension})"
    return RateLimited(
        f"Rate limit of the {layer} reached: {refusal.limit} {what}. Try again in {duration(wait)}.",
        type="tokens" if dimension.unit is Unit.TOKENS else "requests",
        headers=headers,
        retry_after_ms=wait,
    )


def quota_unavailable() -> Overloaded:
    """The 503, while nobody can tell what is left."""
    message = "Quotas can't be checked at the moment."
    return Overloaded(message, code="quota_unavailable", retry_after_ms=QUOTA_RETRY_MS)


def limit_headers(remaining: Remaining) -> dict[str, str]:
    """OpenAI's names and forms, of the tightest layer; nothing where nothing is limited."""
    headers = {}
    if remaining.limit_requests is not None:
        headers["x-ratelimit-limit-requests"] = str(remaining.limit_requests)
        headers["x-ratelimit-remaining-requests"] = str(remaining.remaining_requests)
        headers["x-ratelimit-reset-requests"] = duration(remaining.reset_requests_ms or 0)
    if remaining.limit_tokens is not None:
        headers["x-ratelimit-limit-tokens"] = str(remaining.limit_tokens)
        headers["x-ratelimit-remaining-tokens"] = str(remaining.remaining_tokens)
        headers["x-ratelimit-reset-tokens"] = duration(remaining.reset_tokens_ms or 0)
    return headers


def duration(milliseconds: int) -> str:
    """As OpenAI writes durations: 12ms, 1s, 1.5s, 6m0s, 2h5m0s."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
