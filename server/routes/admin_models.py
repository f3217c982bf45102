"""/admin/v1/models: how the models stand; loading and unloading them.

They are this server's: all its gateways', no other server's.
"""

import logging
from collections.abc import Awaitable
from typing import Annotated, Protocol, cast

from fastapi import Depends
from starlette.requests import Request

from server.auth import Principal
from server.errors import Conflict, ModelNotFound
from server.lifecycle import ModelControlError
from server.model_control import ModelControl
from server.registry import Deployment, Registry
from server.routes.admin_common import Admin, admin_router
from server.routes.common import HasSettings
from server.wire import admin_models as wire
from server.wire.body import parse_json, read_body
from server.wire.takes import takes
from server.wire.usage import Page

log = logging.getLogger(__name__)
router = admin_router()


class ModelServices(HasSettings, Protocol):
    """What these routes need of the application's services."""

    @property
    def registry(self) -> Registry: ...

    @property
    def control(self) -> ModelControl: ...


async def services_of(request: Request) -> ModelServices:
    return cast(ModelServices, request.app.state.penstock)


Services = Annotated[ModelServices, Depends(services_of)]


@router.get("/models")
async def list_models(services: Services, admin: Admin) -> Page[wire.ModelView]:
    """All that the key may use."""
    deployments = services.registry.deployments.values()
    views = [_view(d) for d in deployments if admin.may_use_model(d.model, d.version)]
    return Page(data=views, has_more=False)


@router.get("/models/{deployment:path}")
async def get_model(deployment: str, services: Services, admin: Admin) -> wire.ModelView:
    return _view(_find(services, deployment, admin))


@router.post("/models/{deployment:path}/load")
@takes(wire.Nothing, optional=True)
async def load_model(deployment: str, request: Request, services: Services, admin: Admin) -> wire.ModelView:
    """Returns when it serves, on every gateway; at once where it does. Who leaves before stops nothing."""
    found = _find(services, deployment, admin)
    await _read(request, wire.Nothing, services)
    log.info("load of model %s asked for by key %s", found.id, admin.key_id)
    await _carried_out(services.control.load(found.id))
    return _view(found)


@router.post("/models/{deployment:path}/unload")
@takes(wire.Unload, optional=True)
async def unload_model(deployment: str, request: Request, services: Services, admin: Admin) -> wire.ModelView:
    """New requests are refused from now on, on every gateway. Returns when its workers have ended, which waits for
    the requests that run; at once where they have. Who leaves before stops nothing."""
    found = _find(services, deployment, admin)
    body = await _read(request, wire.Unload, services)
    log.info("unload of model %s asked for by key %s", found.id, admin.key_id)
    await _carried_out(services.control.unload(found.id, body.drain_seconds))
    return _view(found)


def _find(services: ModelServices, name: str, admin: Principal) -> Deployment:
    """Raises ModelNotFound, for what the key may not use too."""
    deployment = services.registry.deployments.get(name)
    if deployment is None or not admin.may_use_model(deployment.model, deployment.version):
        message = f"There is no model '{name[:128]}': expected name@version, as GET /admin/v1/models lists them."
        raise ModelNotFound(message, param="model")
    return deployment


async def _read(request: Request, model: type[wire.AnyBody], services: ModelServices) -> wire.AnyBody:
    """No body is the same as an empty object."""
    settings = services.settings
    body = await read_body(request, settings.limits.body_bytes, settings.timeouts.body)
    return parse_json(body or b"{}", model)


async def _carried_out(work: Awaitable[None]) -> None:
    try:
        await work
    except ModelControlError as error:
        raise Conflict(str(error), code=error.code) from None


def _view(deployment: Deployment) -> wire.ModelView:
    stats = [replica.stats for replica in deployment.replicas]
    return wire.ModelView(
        id=deployment.id,
        name=deployment.model,
        version=deployment.version,
        engine=deployment.engine,
        state=deployment.standing,
        reason=deployment.state.reason,
        replicas=len(deployment.replicas),
        replicas_ready=sum(replica.is_ready for replica in deployment.replicas),
        running=sum(s.running for s in stats),
        waiting=sum(s.waiting for s in stats),
    )
