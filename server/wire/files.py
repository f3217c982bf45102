"""`/v1/files`: the form of an upload, the query of a list, and OpenAI's shapes."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from server.errors import InvalidRequest, UnsupportedParameter
from server.store.records import StoredFile
from server.wire.body import from_validation
from server.wire.multipart import Part

PURPOSES = ("batch", "fine-tune", "user_data", "assistants")
MAX_LISTED = 10_000
MAX_FILENAME = 255
MAX_FIELD_BYTES = 1024
BATCH_LIFE = timedelta(days=30)  # of a file for a batch, and of one that a batch wrote, where nothing else is asked
LIFE_SECONDS = Field(ge=3600, le=2_592_000)
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


def _known_purpose(purpose: str) -> str:
    if purpose in ("vision", "evals"):
        raise PydanticCustomError(
            "purpose", "no endpoint of this server reads files for {purpose}", {"purpose": purpose}
        )
    if purpose not in PURPOSES:
        raise PydanticCustomError("purpose", "expected one of {known}", {"known": ", ".join(PURPOSES)})
    return purpose


class ExpiresAfter(BaseModel):
    """A form's values are text: not strict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    anchor: Literal["created_at"]
    seconds: Annotated[int, LIFE_SECONDS]


class FileForm(BaseModel):
    """An upload's fields; the file itself has gone another way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    purpose: Annotated[str, AfterValidator(_known_purpose)]
    expires_after: ExpiresAfter | None = None

    def expires_at(self, now: datetime) -> datetime | None:
        if self.expires_after is not None:
            return now + timedelta(seconds=self.expires_after.seconds)
        return now + BATCH_LIFE if self.purpose == "batch" else None


class FormFields:
    """The fields of an upload as they arrive, each within its bound and once."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._parts: dict[str, Part] = {}

    @property
    def filename(self) -> str:
        """Without its folders and without what can't be shown. Raises InvalidRequest when no file came."""
        if (part := self._parts.get("file")) is None:
            message = "Missing required parameter: 'file'."
            raise InvalidRequest(message, param="file", code="missing_required_parameter")
        return clean_name(part.filename or "")

    def add(self, part: Part, data: bytes) -> bool:
        """Whether this is the file, whose bytes are not kept here. Raises InvalidRequest."""
        if self._parts.setdefault(part.name, part) is not part:
            raise InvalidRequest(f"'{_shown(part.name)}' stands twice in the form.", param=_shown(part.name))
        if part.name == "file":
            return True
        if part.name not in _FIELDS:
            raise UnsupportedParameter(_shown(part.name))
        value = self._values[part.name] = self._values.get(part.name, b"") + data
        if len(value) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"'{part.name}' is too long.", param=part.name)
        return False

    def read(self) -> FileForm:
        """Raises InvalidRequest."""
        tree: dict[str, Any] = {}
        for name, raw in self._values.items():
            outer, _, inner = name.rstrip("]").partition("[")
            value = raw.decode("utf-8", "replace")
            if inner:
                tree.setdefault(outer, {})[inner] = value
            else:
                tree[outer] = value
        try:
            return FileForm.model_validate(tree)
        except ValidationError as error:
            raise from_validation(error, tree) from None


class FilesQuery(BaseModel):
    """A query string's values are text: not strict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: Annotated[str, StringConstraints(max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED)] = MAX_LISTED
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, StringConstraints(max_length=64)] | None = None


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int  # Unix seconds, as the next
    expires_at: int | UnsetType = UNSET
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class CursorPage(msgspec.Struct, frozen=True, kw_only=True):
    """What every list with `after` looks like."""

    object: Literal["list"] = "list"
    data: list[Any]
    first_id: str  # "" of an empty page, as the next
    last_id: str
    has_more: bool


def cursor_page(objects: list[Any], limit: int) -> CursorPage:
    """`objects` have an `id` each, and are one more than a page if there is more."""
    shown = objects[:limit]
    first, last = (shown[0].id, shown[-1].id) if shown else ("", "")
    return CursorPage(data=shown, first_id=first, last_id=last, has_more=len(objects) > limit)


def file_object(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.num_bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=UNSET if file.expires_at is None else int(file.expires_at.timestamp()),
        filename=file.filename,
        purpose=file.purpose,
    )


def clean_name(filename: str) -> str:
    """What may stand in a header and in a list."""
    name = "".join(c for c in re.split(r"[/\\]", filename)[-1] if c.isprintable() and c != '"').strip()
    return name[:MAX_FILENAME] if name.strip(".") else "upload"


def _shown(name: str) -> str:
    return name[:64]
