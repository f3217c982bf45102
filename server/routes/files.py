"""`/v1/files`: what an account stores here, most of all for its batches."""

from __future__ import annotations

from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server import uploads
from server.auth import Principal
from server.errors import Conflict, NotFound
from server.routes.common import CurrentPrincipal, CurrentServices, store_is_there
from server.services import Services
from server.store.records import StoredFile
from server.wire.answers import answers
from server.wire.body import read_query
from server.wire.files import CursorPage, FileDeleted, FileForm, FileObject, FilesQuery, cursor_page, file_object
from server.wire.takes import takes

router = APIRouter(prefix="/v1/files", dependencies=[Depends(store_is_there)])


@router.post("")
@takes(FileForm, "file")
@answers(FileObject)
async def create(request: Request, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    settings = services.settings
    file = await uploads.receive(
        request, services.store.files, principal.account_id, settings.files, settings.timeouts.body
    )
    return _json(file_object(file))


@router.get("")
@takes(FilesQuery)
@answers(CursorPage)
async def list_files(request: Request, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    query = read_query(request, FilesQuery)
    files = await services.store.files.list(
        principal.account_id,
        limit=query.limit + 1,
        after=query.after,
        purpose=query.purpose,
        oldest_first=query.order == "asc",
    )
    return _json(cursor_page([file_object(file) for file in files], query.limit))


@router.get("/{file_id}")
@answers(FileObject)
async def retrieve(file_id: str, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    return _json(file_object(await find_file(services, principal, file_id)))


@router.get("/{file_id}/content")
@answers(media="application/octet-stream")
async def content(file_id: str, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    """Its bytes as they are, for nobody to interpret. A stream that is cut short is shorter than its length says."""
    file = await find_file(services, principal, file_id)
    headers = {
        "content-length": str(file.num_bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(services.store.files.chunks(file.id), 200, headers, "application/octet-stream")


@router.delete("/{file_id}")
@answers(FileDeleted)
async def delete(file_id: str, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    if await services.store.files.is_in_use(file_id) and await services.store.files.get(principal.account_id, file_id):
        message = "A batch that is not over reads this file: cancel it first."
        raise Conflict(message, code="file_in_use", headers={"x-should-retry": "false"})
    if not await services.store.files.delete(principal.account_id, file_id):
        raise no_such_file(file_id)
    return _json(FileDeleted(id=file_id))


async def find_file(services: Services, principal: Principal, file_id: str) -> StoredFile:
    """Raises NotFound, for another account's too: nobody learns that there is one."""
    file = await services.store.files.get(principal.account_id, file_id)
    if file is None:
        raise no_such_file(file_id)
    return file


def no_such_file(file_id: str, param: str = "id") -> NotFound:
    return NotFound(f"No such File object: {file_id[:64]}.", param=param)


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
