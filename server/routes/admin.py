"""/admin/v1: accounts, keys, usage. For admin keys only."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Protocol, TypeVar, cast

from fastapi import APIRouter, Depends
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request

from server.access import require_admin
from server.auth import Authenticator, Principal
from server.errors import Conflict, InvalidRequest, NotFound, Overloaded, PermissionDenied
from server.routes.common import HasSettings, read
from server.store import NameTaken, Store
from server.store.accounts import ADMIN_ACCOUNT
from server.store.credentials import issue_key
from server.store.errors import WrongKeySpec
from server.store.keys import KeySpec
from server.store.records import Account, Key, KeyKind, utc_now
from server.wire import admin as wire
from server.wire.body import read_query

log = logging.getLogger(__name__)


class AdminServices(HasSettings, Protocol):
    """What these routes need of the application's services."""

    @property
    def store(self) -> Store: ...

    @property
    def authenticator(self) -> Authenticator: ...

    @property
    def pepper(self) -> bytes: ...

    @property
    def plans(self) -> Mapping[str, Any]:
        """The configured plans, by name."""
        ...


def services_of(request: Request) -> AdminServices:
    """The only place here that knows where the application keeps them."""
    return cast(AdminServices, request.app.state.penstock)


async def store_is_there() -> AsyncIterator[None]:
    """A database that is away is a 503, not a fault of ours."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        log.warning("admin: the database failed: %s", type(error).__name__)
        raise Overloaded("The database can't be reached at the moment.", retry_after_ms=1000) from error


Services = Annotated[AdminServices, Depends(services_of)]
Admin = Annotated[Principal, Depends(require_admin)]
router = APIRouter(prefix="/admin/v1", dependencies=[Depends(require_admin), Depends(store_is_there)])


@router.post("/accounts")
async def create_account(request: Request, services: Services, admin: Admin) -> wire.AccountView:
    body = await read(request, wire.CreateAccount, services)
    _check_plan(services, body.plan)
    try:
        account = await services.store.accounts.create(body.name, body.plan, body.overrides)
    except NameTaken as error:
        raise Conflict(f"An {error}.", param="name") from None
    log.info("account %s created by key %s", account.name, admin.key_id)
    return _account_view(account)


@router.get("/accounts")
async def list_accounts(request: Request, services: Services) -> wire.Page[wire.AccountView]:
    query = read_query(request, wire.PageQuery)
    accounts = await services.store.accounts.list(query.limit + 1, query.after)
    return _page([_account_view(account) for account in accounts], query.limit)


@router.get("/accounts/{account}")
async def get_account(account: str, services: Services) -> wire.AccountView:
    return _account_view(await _account(services, account))


@router.patch("/accounts/{account}")
async def change_account(account: str, request: Request, services: Services, admin: Admin) -> wire.AccountView:
    """Takes effect here at once, on other gateways when their cached answers are old."""
    body = await read(request, wire.ChangeAccount, services)
    found = await _account(services, account)
    if body.plan is not None:
        _check_plan(services, body.plan)
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
async def create_key(request: Request, services: Services, admin: Admin) -> wire.NewKeyView:
    """The only answer that holds a key's text."""
    body = await read(request, wire.CreateKey, services)
    spec = await _spec(services, body, admin)
    issued = await issue_key(services.store, services.pepper, spec)
    log.info("key %s of account %s created by key %s", issued.key.id, issued.key.account_name, admin.key_id)
    return wire.NewKeyView(**_key_fields(issued.key), key=issued.text)


@router.get("/keys")
async def list_keys(request: Request, services: Services) -> wire.Page[wire.KeyView]:
    query = read_query(request, wire.KeysQuery)
    account_id = (await _account(services, query.account)).id if query.account else None
    keys = await services.store.keys.list(account_id, query.limit + 1, query.after)
    return _page([_key_view(key) for key in keys], query.limit)


@router.get("/keys/{key_id}")
async def get_key(key_id: str, services: Services) -> wire.KeyView:
    return _key_view(_found(await services.store.keys.get(key_id)))


@router.delete("/keys/{key_id}")
@router.post("/keys/{key_id}/revoke")
async def revoke_key(key_id: str, services: Services, admin: Admin) -> wire.KeyView:
    """For good. Holds here at once, on other gateways when their cached answers are old (3 s)."""
    key = _found(await services.store.keys.revoke(key_id, by=admin.key_id))
    services.authenticator.invalidate(key_id)
    log.info("key %s revoked by key %s", key_id, admin.key_id)
    return _key_view(key)


@router.get("/usage")
async def usage(request: Request, services: Services) -> wire.Page[wire.UsageView]:
    """Up to half a second behind: usage is written in batches."""
    query = read_query(request, wire.UsageQuery)
    account_id = (await _account(services, query.account)).id if query.account else None
    sums = await services.store.usage.sums(
        query.group_by, account_id=account_id, since=query.since, until=query.until, limit=query.limit + 1
    )
    names = await services.store.accounts.names({row.account_id for row in sums if row.account_id})
    views = [wire.UsageView(account=names.get(row.account_id or ""), **asdict(row)) for row in sums]
    return _page(views, query.limit)


async def _account(services: AdminServices, name_or_id: str) -> Account:
    account = await services.store.accounts.get(name_or_id)
    if account is None:
        raise NotFound("No such account.", param="account")
    return account


def _found(key: Key | None) -> Key:
    if key is None:
        raise NotFound("No such key.", param="key_id")
    return key


def _check_plan(services: AdminServices, plan: str) -> None:
    if plan not in services.plans:
        raise InvalidRequest(f"Unknown plan: expected one of {', '.join(sorted(services.plans))}.", param="plan")


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
    return await _account(services, name)


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


View = TypeVar("View", bound=wire.AdminModel)


def _page(views: Sequence[View], limit: int) -> wire.Page[View]:
    """`views` has one more than a page if there is more."""
    return wire.Page[View](data=views[:limit], has_more=len(views) > limit)


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
