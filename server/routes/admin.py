"""/admin/v1: accounts, keys, usage. For admin keys only."""

import logging
from dataclasses import asdict
from datetime import datetime
from typing import Any

from starlette.requests import Request

from server.auth import Principal
from server.errors import Conflict, InvalidRequest, NotFound, PermissionDenied
from server.routes.admin_common import Admin, AdminServices, Services, admin_router, find_account
from server.routes.common import read
from server.store import NameTaken
from server.store.accounts import ADMIN_ACCOUNT
from server.store.credentials import issue_key
from server.store.errors import WrongKeySpec
from server.store.keys import KeySpec
from server.store.records import Account, Key, KeyKind, utc_now
from server.wire import admin as wire
from server.wire.body import read_query
from server.wire.takes import takes
from server.wire.usage import Page, page

log = logging.getLogger(__name__)


router = admin_router()


@router.post("/accounts")
@takes(wire.CreateAccount)
async def create_account(request: Request, services: Services, admin: Admin) -> wire.AccountView:
    body = await read(request, wire.CreateAccount, services)
    await _check_plan(services, body.plan)
    try:
        account = await services.store.accounts.create(body.name, body.plan, body.overrides)
    except NameTaken as error:
        raise Conflict(f"An {error}.", param="name") from None
    log.info("account %s created by key %s", account.name, admin.key_id)
    return _account_view(account)


@router.get("/accounts")
@takes(wire.PageQuery)
async def list_accounts(request: Request, services: Services) -> Page[wire.AccountView]:
    query = read_query(request, wire.PageQuery)
    accounts = await services.store.accounts.list(query.limit + 1, query.after)
    return page([_account_view(account) for account in accounts], query.limit)


@router.get("/accounts/{account}")
async def get_account(account: str, services: Services) -> wire.AccountView:
    return _account_view(await find_account(services, account))


@router.patch("/accounts/{account}")
@takes(wire.ChangeAccount)
async def change_account(account: str, request: Request, services: Services, admin: Admin) -> wire.AccountView:
    """Takes effect here at once, on other gateways when their cached answers are old."""
    body = await read(request, wire.ChangeAccount, services)
    found = await find_account(services, account)
    if body.plan is not None:
        await _check_plan(services, body.plan)
    if body.disabled and found.name == ADMIN_ACCOUNT:
        raise Conflict(f"The account {ADMIN_ACCOUNT} can't be disabled: no key could enable it.", param="disabled")
    changed = await services.store.accounts.update(
        found.id, plan=body.plan, overrides=body.overrides, disabled=body.disabled
    )
    assert changed is not None, "accounts are never deleted"
    services.authenticator.invalidate_account(found.id)
    log.info("account %s changed by key %s", found.name, admin.key_id)
    return _account_view(changed)


@router.post("/keys")
@takes(wire.CreateKey)
async def create_key(request: Request, services: Services, admin: Admin) -> wire.NewKeyView:
    """The only answer that holds a key's text."""
    body = await read(request, wire.CreateKey, services)
    spec = await _spec(services, body, admin)
    issued = await issue_key(services.store, services.pepper, spec)
    log.info("key %s of account %s created by key %s", issued.key.id, issued.key.account_name, admin.key_id)
    return wire.NewKeyView(**_key_fields(issued.key), key=issued.text)


@router.get("/keys")
@takes(wire.KeysQuery)
async def list_keys(request: Request, services: Services) -> Page[wire.KeyView]:
    query = read_query(request, wire.KeysQuery)
    account_id = (await find_account(services, query.account)).id if query.account else None
    keys = await services.store.keys.list(account_id, query.limit + 1, query.after)
    return page([_key_view(key) for key in keys], query.limit)


@router.get("/keys/{key_id}")
async def get_key(key_id: str, services: Services) -> wire.KeyView:
    return _key_view(_found(await services.store.keys.get(key_id)))


@router.delete("/keys/{key_id}")
@router.post("/keys/{key_id}/revoke")
@takes(None)
async def revoke_key(key_id: str, services: Services, admin: Admin) -> wire.KeyView:
    """For good. Holds here at once, on other gateways when their cached answers are old (3 s)."""
    key = _found(await services.store.keys.revoke(key_id, by=admin.key_id))
    services.authenticator.invalidate(key_id)
    log.info("key %s revoked by key %s", key_id, admin.key_id)
    return _key_view(key)


@router.get("/usage")
@takes(wire.UsageQuery)
async def usage(request: Request, services: Services) -> Page[wire.UsageView]:
    """Up to half a second behind: usage is written in batches."""
    query = read_query(request, wire.UsageQuery)
    account_id = (await find_account(services, query.account)).id if query.account else None
    sums = await services.store.usage.sums(
        query.group_by,
        account_id=account_id,
        key_id=query.key,
        model=query.model,
        since=query.since,
        until=query.until,
        limit=query.limit + 1,
    )
    names = await services.store.accounts.names({row.account_id for row in sums if row.account_id})
    views = [wire.UsageView(account=names.get(row.account_id or ""), **asdict(row)) for row in sums]
    return page(views, query.limit)


def _found(key: Key | None) -> Key:
    if key is None:
        raise NotFound("No such key.", param="key_id")
    return key


async def _check_plan(services: AdminServices, plan: str) -> None:
    if plan not in services.plans.entries:
        await services.plans.refresh()  # perhaps another gateway made it just now
    if plan not in services.plans.entries:
        known = ", ".join(sorted(services.plans.entries))
        raise InvalidRequest(f"Unknown plan: expected one of {known}.", param="plan")


async def _spec(services: AdminServices, body: wire.CreateKey, admin: Principal) -> KeySpec:
    try:
        return KeySpec(
            account=await _owner(services, body),
            kind=body.kind,
            name=body.name,
            models=_models(body.models, admin),
            features=_features(body.features, admin),
            limits=body.limits or {},
            expires_at=_expiry(body.expiry(utc_now()), admin),
            created_by=admin.key_id,
        )
    except WrongKeySpec as error:
        raise InvalidRequest(str(error), param=error.field) from None


async def _owner(services: AdminServices, body: wire.CreateKey) -> Account:
    default = ADMIN_ACCOUNT if body.kind is KeyKind.ADMIN else None
    if (name := body.account or default) is None:
        message = "Missing required parameter: 'account'."
        raise InvalidRequest(message, param="account", code="missing_required_parameter")
    return await find_account(services, name)


def _models(wanted: frozenset[str] | None, admin: Principal) -> frozenset[str] | None:
    """What the new key may use: never more than its creator's key. `name` covers each `name@version`."""
    held = admin.models
    if wanted is None or held is None:
        return held if wanted is None else wanted
    if any(model not in held and model.partition("@")[0] not in held for model in wanted):
        raise PermissionDenied("Your key does not hold all of these models.", param="models")
    return wanted


def _features(wanted: frozenset[str] | None, admin: Principal) -> frozenset[str] | None:
    held = admin.features
    if wanted is None or held is None:
        return held if wanted is None else wanted
    if not wanted <= held:
        raise PermissionDenied("Your key does not hold all of these features.", param="features")
    return wanted


def _expiry(wanted: datetime | None, admin: Principal) -> datetime | None:
    """A key does not outlive the one that made it."""
    if wanted is not None and wanted <= utc_now():
        raise InvalidRequest("Expected a time to come.", param="expires_at")
    if wanted is None or admin.expires_at is None:
        return admin.expires_at if wanted is None else wanted
    if wanted > admin.expires_at:
        raise PermissionDenied("A key can't outlive the key that makes it.", param="expires_at")
    return wanted


def _account_view(account: Account) -> wire.AccountView:
    return wire.AccountView(**asdict(account))


def _key_view(key: Key) -> wire.KeyView:
    return wire.KeyView(**_key_fields(key))


def _key_fields(key: Key) -> dict[str, Any]:
    fields = asdict(key)
    fields["account"] = fields.pop("account_name")
    for scope in ("models", "features"):
        fields[scope] = None if fields[scope] is None else sorted(fields[scope])
    return fields
