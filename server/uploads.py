"""An upload on its way from the connection into the store, chunk by chunk; and what is swept out again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request

from server.errors import APIError, PayloadTooLarge, RequestTimeout
from server.periodic import periodically
from server.settings_sections import FileSettings
from server.shielded import to_the_end
from server.store.errors import StoreError
from server.store.files import AccountFull, Files, FileWriter
from server.store.records import StoredFile, utc_now
from server.wire.files import FormFields
from server.wire.multipart import MultipartReader

FORM_BYTES = 64 * 1024  # of a form beside its file: boundaries, headers, fields
SWEEP_EVERY = 60.0  # seconds
_CLOSE = {"connection": "close"}  # what is left of the body is not worth reading


async def receive(
    request: Request, files: Files, account_id: str, settings: FileSettings, silence: float
) -> StoredFile:
    """Raises APIError: 400, 408 (`silence` seconds without a byte, or the upload took too long), 413. Nothing is kept
    of an upload that failed."""
    reader = MultipartReader(request.headers.get("content-type", ""))
    _check_declared(request, settings.file_bytes)
    writer = await files.begin(account_id, settings.account_bytes)
    try:
        async with asyncio.timeout(settings.upload_timeout):
            fields = await _read(request, reader, writer, settings.file_bytes, silence)
            form, filename = fields.read(), fields.filename
            return await writer.finish(filename, form.purpose, form.expires_at(utc_now()))
    except (TimeoutError, StoreError) as error:
        await to_the_end(writer.discard())
        raise _refusal(error, settings) from None
    except BaseException:
        await to_the_end(writer.discard())
        raise


async def _read(
    request: Request, reader: MultipartReader, writer: FileWriter, file_bytes: int, silence: float
) -> FormFields:
    fields, num_bytes = FormFields(), 0
    async for data in _body(request, silence):
        num_bytes += len(data)
        for piece in reader.feed(data):
            if fields.add(piece.part, piece.data) and piece.data:
                if writer.num_bytes + len(piece.data) > file_bytes:
                    raise _too_large(file_bytes)
                await writer.write(piece.data)
        if num_bytes > file_bytes + FORM_BYTES:
            raise _too_large(file_bytes)
    reader.finish()
    return fields


async def _body(request: Request, silence: float) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(silence):
                data = await anext(stream)
        except StopAsyncIteration:
            return
        yield data


def _check_declared(request: Request, file_bytes: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > file_bytes + FORM_BYTES):
        raise _too_large(file_bytes)


def _too_large(file_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The file is larger than {file_bytes} bytes.", param="file", headers=_CLOSE)


def _refusal(error: TimeoutError | StoreError, settings: FileSettings) -> APIError:
    if isinstance(error, AccountFull):
        message = f"The files of this account would have more than {settings.account_bytes} bytes: delete some."
        return PayloadTooLarge(message, param="file", code="storage_limit_exceeded", headers=_CLOSE)
    return RequestTimeout("The upload took too long.", headers=_CLOSE)


async def sweep_for_ever(files: Files) -> None:
    """Every gateway does: that two meet at one file does no harm."""
    await periodically(files.sweep, SWEEP_EVERY, "the removal of expired files")
