"""The administrators' routes, and those that read records, over a database of their own and no engine."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from quota.levels import DEFAULT_PLAN, Limits, Plan
from quota.memory import MemoryLedger
from server.access import authenticate_route
from server.auth import Authenticator
from server.entitlement import Entitlement
from server.errors import APIError
from server.plans import PlanBook
from server.routes import admin, admin_plans, usage
from server.settings import Settings, load
from server.store import Store
from server.store.credentials import ensure_presets

PEPPER = b"pepper"
ADMIN = "preset-admin-key-0001"
API = "preset-api-key-0001"

Connect = Callable[[str], httpx.AsyncClient]


@dataclass(slots=True)
class Services:
    settings: Settings
    store: Store
    authenticator: Authenticator
    pepper: bytes
    plans: PlanBook
    ledger: MemoryLedger
    entitlement: Entitlement


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    store = await Store.open(data_dir=tmp_path)
    await ensure_presets(store, PEPPER, API, ADMIN)
    (tmp_path / "penstock.toml").write_text("[limits]\nbody_bytes = 8192\n[timeouts]\nbody = 0.5\n")
    settings = load(tmp_path / "penstock.toml", {"data_dir": str(tmp_path)}, {})
    plans = PlanBook({"default": DEFAULT_PLAN, "gold": Plan("gold", account=Limits(rpm=50))}, store.plans)
    ledger = MemoryLedger()
    entitlement = Entitlement(ledger, plans, lambda _: None)
    made = Services(settings, store, Authenticator(store.keys, PEPPER), PEPPER, plans, ledger, entitlement)
    yield made
    await made.authenticator.close()
    await store.close()


@pytest.fixture
def connect(services: Services) -> Connect:
    app = FastAPI(dependencies=[Depends(authenticate_route)], openapi_url=None)
    app.state.penstock = services
    for router in (admin.router, admin_plans.router, usage.router):
        app.include_router(router)

    @app.exception_handler(APIError)
    async def answer(_: Request, error: APIError) -> JSONResponse:
        return JSONResponse(error.envelope(), error.status, error.headers)

    @app.get("/v1/models")
    async def models() -> dict[str, str]:
        return {}

    def client(key: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)

    return client


@pytest.fixture
async def client(connect: Connect) -> AsyncIterator[httpx.AsyncClient]:
    """An administrator."""
    async with connect(ADMIN) as opened:
        yield opened


def check_error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["message"]
    return error


def check_ok(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body
