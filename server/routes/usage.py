"""`/v1/usage`: what the caller's own account used, and how its limits stand."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.routes.common import CurrentPrincipal, CurrentServices, limit_headers_on_errors, store_is_there
from server.wire.body import read_query
from server.wire.takes import takes
from server.wire.usage import AccountUsage, AccountUsageQuery, StandingView, UsageGroup

router = APIRouter(dependencies=[Depends(store_is_there)])


@router.get("/v1/usage")
@takes(AccountUsageQuery)
async def usage(
    request: Request, response: Response, principal: CurrentPrincipal, services: CurrentServices
) -> AccountUsage:
    """Of all the account's keys; the limits are the account's, this key's, and those of the plan's models and features.

    Usage is up to half a second behind: it is written in batches.
    """
    async with limit_headers_on_errors(principal, services):
        query = read_query(request, AccountUsageQuery)
    sums = await services.store.usage.sums(
        query.group_by, account_id=principal.account_id, since=query.since, until=query.until, limit=query.limit + 1
    )
    groups = [UsageGroup(**{name: getattr(row, name) for name in _GROUP}) for row in sums]
    limits = await services.entitlement.standings(principal)
    response.headers.update(await services.entitlement.headers(principal))
    return AccountUsage(
        data=groups[: query.limit],
        has_more=len(groups) > query.limit,
        account=principal.account_name,
        plan=principal.plan,
        limits=[StandingView(**asdict(row)) for row in limits],
    )


_GROUP = UsageGroup.model_fields.keys() - {"object"}
