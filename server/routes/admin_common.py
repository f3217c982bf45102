"""What the families of /admin/v1 share: for admin keys only, on the records and the ledger."""

from typing import Annotated, Protocol, cast

from fastapi import APIRouter, Depends
from starlette.requests import Request

from quota.ledger import Ledger
from server.access import require_admin
from server.auth import Authenticator, Principal
from server.errors import NotFound
from server.plans import PlanBook
from server.routes.common import HasSettings, store_is_there
from server.store import Store
from server.store.records import Account


class AdminServices(HasSettings, Protocol):
    """What these routes need of the application's services."""

    @property
    def store(self) -> Store: ...

    @property
    def authenticator(self) -> Authenticator: ...

    @property
    def pepper(self) -> bytes: ...

    @property
    def plans(self) -> PlanBook: ...

    @property
    def ledger(self) -> Ledger: ...


async def services_of(request: Request) -> AdminServices:
    """The only place here that knows where the application keeps them."""
    return cast(AdminServices, request.app.state.penstock)


Services = Annotated[AdminServices, Depends(services_of)]
Admin = Annotated[Principal, Depends(require_admin)]


def admin_router() -> APIRouter:
    return APIRouter(prefix="/admin/v1", dependencies=[Depends(require_admin), Depends(store_is_there)])


async def find_account(services: AdminServices, name_or_id: str) -> Account:
    account = await services.store.accounts.get(name_or_id)
    if account is None:
        raise NotFound("No such account.", param="account")
    return account
