"""/admin/v1: plans, and the limits of accounts. What is set here wins over the configuration file."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request

from quota.levels import Plan
from server.errors import Conflict, NotFound
from server.plans import PlanEntry, Source
from server.routes.admin_common import Admin, AdminServices, Services, admin_router, find_account
from server.routes.common import read
from server.standings import account_standings
from server.store.records import Account
from server.wire import admin_plans as wire
from server.wire.takes import takes
from server.wire.usage import Page, StandingView

log = logging.getLogger(__name__)
router = admin_router()


@router.get("/plans")
async def list_plans(services: Services) -> Page[wire.PlanView]:
    """All that are in force, the file's among them."""
    entries = services.plans.entries
    return Page(data=[_plan_view(entries[name]) for name in sorted(entries)], has_more=False)


@router.get("/plans/{name}")
async def get_plan(name: str, services: Services) -> wire.PlanView:
    entry = services.plans.entries.get(name)
    if entry is None:
        raise _unknown()
    return _plan_view(entry)


@router.put("/plans/{name}")
@takes(wire.PlanTables)
async def put_plan(name: str, request: Request, services: Services, admin: Admin) -> wire.PlanView:
    """Make a plan, or replace it as a whole. Holds here at once, on other gateways within 5 seconds."""
    wire.check_plan_name(name)
    body = await read(request, wire.PlanTables, services)
    stored = await services.store.plans.put(name, body.tables())
    await services.plans.refresh()
    log.info("plan set by key %s: %r", admin.key_id, name)
    return _plan_view(PlanEntry(Plan.parse(name, stored.tables), Source.DATABASE, stored.updated_at))


@router.delete("/plans/{name}")
async def delete_plan(name: str, services: Services, admin: Admin) -> wire.DeletedPlan:
    """The configuration file's comes back, if it has one of this name; else no account may use the plan any more."""
    is_configured = services.plans.is_configured(name)
    if await services.store.plans.get(wire.check_plan_name(name)) is None:
        raise _only_in_the_file() if is_configured else _unknown()
    if not is_configured and (count := await services.store.accounts.num_with_plan(name)):
        raise Conflict(f"Accounts use this plan: {count}. Give them another one first.", param="name")
    await services.store.plans.delete(name)
    await services.plans.refresh()
    log.info("plan deleted by key %s: %r", admin.key_id, name)
    entry = services.plans.entries.get(name)
    return wire.DeletedPlan(name=name, in_force=_plan_view(entry) if entry else None)


@router.get("/accounts/{account}/limits")
async def get_limits(account: str, services: Services) -> wire.LimitsView:
    return await _limits_view(services, await find_account(services, account))


@router.put("/accounts/{account}/limits")
@takes(wire.PlanTables)
async def put_limits(account: str, request: Request, services: Services, admin: Admin) -> wire.LimitsView:
    """Set the account's overrides as a whole. Holds here at once, on other gateways within 5 seconds."""
    body = await read(request, wire.PlanTables, services)
    return await _override(services, await find_account(services, account), body.tables(), admin.key_id)


@router.delete("/accounts/{account}/limits")
async def delete_limits(account: str, services: Services, admin: Admin) -> wire.LimitsView:
    """Remove all overrides: the plan alone holds."""
    return await _override(services, await find_account(services, account), {}, admin.key_id)


async def _override(services: AdminServices, account: Account, tables: Mapping[str, Any], by: str) -> wire.LimitsView:
    changed = await services.store.accounts.update(account.id, overrides=tables)
    assert changed is not None, "accounts are never deleted"
    services.authenticator.invalidate_account(account.id)
    log.info("limits of account %s set by key %s", account.name, by)
    return await _limits_view(services, changed)


async def _limits_view(services: AdminServices, account: Account) -> wire.LimitsView:
    rows = await account_standings(account, services.plans, services.store, services.ledger)
    return wire.LimitsView(
        account=account.name,
        account_id=account.id,
        plan=account.plan,
        overrides=account.overrides,
        effective=services.plans.effective(account.plan, account.overrides).tables(),
        limits=[StandingView(**asdict(row)) for row in rows],
    )


def _unknown() -> NotFound:
    return NotFound("No such plan.", param="name")


def _only_in_the_file() -> Conflict:
    return Conflict("This plan stands in the configuration file alone: only there can it be removed.", param="name")


def _plan_view(entry: PlanEntry) -> wire.PlanView:
    return wire.PlanView(name=entry.plan.name, source=entry.source, updated_at=entry.updated_at, **entry.plan.tables())
