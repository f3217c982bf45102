"""Models in the admin API: how they stand, and what an unload may be told."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field

from server.model_state import Standing
from server.wire.admin import AdminModel
from server.wire.usage import View

MAX_DRAIN = 86_400.0  # seconds


class Nothing(AdminModel):
    """A load has no parameters."""


class Unload(AdminModel):
    """`drain_seconds`: how long running requests have; null: `timeouts.drain`."""

    drain_seconds: Annotated[float, Field(ge=0, le=MAX_DRAIN)] | None = None


AnyBody = TypeVar("AnyBody", Nothing, Unload)


class ModelView(View):
    """`reason`: one line, why it is not as it should be; "" where nothing is wrong. Gauges are of the workers' last
    reports."""

    object: Literal["deployment"] = "deployment"
    id: str  # name@version
    name: str
    version: str
    engine: str
    state: Standing
    reason: str
    replicas: int
    replicas_ready: int
    running: int
    waiting: int
