"""`/v1/batches`: many requests in a file, answered in the background within a day."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.auth import Principal
from server.errors import Conflict, InvalidRequest, NotFound
from server.routes.common import CurrentPrincipal, CurrentServices, read, store_is_there
from server.services import Services
from server.store.records import BatchStatus, StoredBatch
from server.wire.answers import answers
from server.wire.batches import BatchesQuery, BatchObject, CreateBatch, batch_object
from server.wire.body import read_query
from server.wire.files import CursorPage, cursor_page
from server.wire.takes import takes

router = APIRouter(prefix="/v1/batches", dependencies=[Depends(store_is_there)])


@router.post("")
@takes(CreateBatch)
@answers(BatchObject)
async def create(request: Request, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    body = await read(request, CreateBatch, services)
    services.entitlement.layers(principal, "", "", {"batch"})  # may this key?
    await _check_input(services, principal, body.input_file_id)
    batch = await services.store.batches.create(
        principal.account_id,
        principal.key_id,
        body.endpoint,
        body.input_file_id,
        body.metadata,
        body.output_expires_after.seconds if body.output_expires_after else None,
    )
    services.batches.look()
    return _json(batch_object(batch))


async def _check_input(services: Services, principal: Principal, file_id: str) -> None:
    file = await services.store.files.get(principal.account_id, file_id)
    if file is None:
        raise InvalidRequest(f"No such File object: {file_id}.", param="input_file_id")
    if file.purpose != "batch":
        message = f"The file's purpose is '{file.purpose}': a batch reads files of the purpose 'batch'."
        raise InvalidRequest(message, param="input_file_id")


@router.get("")
@takes(BatchesQuery)
@answers(CursorPage)
async def list_batches(request: Request, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    query = read_query(request, BatchesQuery)
    batches = await services.store.batches.list(principal.account_id, limit=query.limit + 1, after=query.after)
    return _json(cursor_page([batch_object(batch) for batch in batches], query.limit))


@router.get("/{batch_id}")
@takes(None)
@answers(BatchObject)
async def retrieve(batch_id: str, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    return _json(batch_object(_found(await services.store.batches.get(principal.account_id, batch_id), batch_id)))


@router.post("/{batch_id}/cancel")
@takes(None)
@answers(BatchObject)
async def cancel(batch_id: str, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    """It is cancelled within seconds; what has run is kept."""
    batch = _found(await services.store.batches.cancel(principal.account_id, batch_id), batch_id)
    if batch.status not in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
        message = f"A batch that is {batch.status.value} can't be cancelled."
        raise Conflict(message, headers={"x-should-retry": "false"})
    return _json(batch_object(batch))


def _found(batch: StoredBatch | None, batch_id: str) -> StoredBatch:
    """Raises NotFound, for another account's too: nobody learns that there is one."""
    if batch is None:
        raise NotFound(f"No such Batch object: {batch_id[:64]}.", param="id")
    return batch


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
