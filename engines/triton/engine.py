"""A model that a Triton runs, as a StreamEngine."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import EngineError, StreamEngine
from engines.triton.client import TritonClient
from engines.triton.conventions import recognise
from engines.triton.errors import Fault, TritonError
from engines.triton.health import Health, HealthOptions
from engines.triton.model import TritonModel
from engines.triton.repository import is_forbidden
from engines.types import (
    EngineConfig,
    EngineInfo,
    ErrorCode,
    FinishReason,
    GenerationRequest,
    OutputDelta,
    RequestError,
    SamplingParams,
)

RETRY_MS = 2000
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")

log = logging.getLogger("penstock.triton")


@dataclass(slots=True, frozen=True)
class TritonOptions:
    """`options` of a model with engine = "triton"."""

    canary_timeout: float = 0  # seconds, see HealthOptions; 0: 2.5, for a model without in-flight batching 30
    reload: bool = True  # load a model anew whose process is dead or stopped
    # Of a model without in-flight batching:
    group_by_length: bool = True  # it gets whole batches of about one length; false: requests as they come
    max_padding_waste: float | None = None  # of a whole batch: padding as a share of its real tokens; None: 0.1


class TritonEngine(StreamEngine):
    def __init__(self, config: EngineConfig) -> None:
        """Asks the server what the model is; blocks. Raises EngineError."""
        options = read_options(config.options)
        self._client = TritonClient(config.url, config.remote_model, config.remote_version)
        model = self._client.describe(may_load=config.load)
        self._model, self._convention = model, recognise(model)
        grouped = model.batch_size if _whole_batches(model) and options.group_by_length else 0
        self._capacity = grouped * model.instances if grouped else config.max_num_seqs
        self.info = EngineInfo(
            max_model_len=config.max_model_len or _context(Path(config.path)),
            max_num_seqs=self._capacity,
            vocab_size=0,
            description=f"Triton at {config.url}: {config.remote_model}, {type(self._convention).__name__}",
            takes_text=self._convention.takes_text,
            max_batch_size=grouped,
            max_padding_waste=options.max_padding_waste,
            sampling=self._convention.sampling,
            continuation=self._convention.continuation,
        )
        timeout = options.canary_timeout or (30.0 if _whole_batches(model) else 2.5)
        self._health = Health(self._client, self._canary, config.name, HealthOptions(timeout, options.reload))

    def capacity(self) -> int:
        return self._capacity if self._health.is_ready else 0

    async def watch(self) -> None:
        self._client.connect()
        await self._health.watch()

    async def check_unload(self) -> None:
        with unload_errors():
            await self._client.repository.check_control()

    async def unload(self) -> None:
        with unload_errors():
            async with self._health.retiring():
                await self._client.repository.unload()

    def resume(self) -> None:
        self._health.resume()

    async def generate(self, request: GenerationRequest, padded_len: int) -> AsyncGenerator[OutputDelta, None]:
        reader = self._convention.reader(request)
        inputs = self._convention.inputs(request, padded_len)
        stream = self._client.stream(inputs, self._model.inputs, request.request_id)
        try:
            async with contextlib.aclosing(stream):
                async for outputs in stream:
                    self._health.saw_life()
                    delta = reader.read(outputs)
                    yield delta
                    if delta.finish_reason is not None:
                        return
            yield reader.last()
        except TritonError as error:
            log.warning("request %s: %s", request.request_id, error)
            self._health.suspect(error)
            yield OutputDelta(request.request_id, finish_reason=FinishReason.ERROR, error=_for_client(error))

    async def _canary(self) -> None:
        """The shortest request there is: one token. Raises TritonError."""
        request = GenerationRequest("canary", "", [1], SamplingParams(max_tokens=1), 0, 0, prompt_text="a")
        stream = self._client.stream(self._convention.inputs(request, 1), self._model.inputs, "canary")
        async with contextlib.aclosing(stream):
            async for _ in stream:
                self._health.saw_life()


@contextlib.contextmanager
def unload_errors() -> Iterator[None]:
    """Of Triton, as an EngineError."""
    try:
        yield
    except TritonError as error:
        if is_forbidden(str(error)):
            message = "its Triton loads and unloads no models: it needs --model-control-mode=explicit"
        else:
            message = f"its Triton does not unload it: {' '.join(str(error).split())[:300]}"
        raise EngineError(message) from None


def _whole_batches(model: TritonModel) -> bool:
    """A decoupled model, one without a batcher of Triton's, or TensorRT-LLM in flight sees to its batches itself."""
    is_in_flight = model.decoupled or "inflight" in model.parameters.get("gpt_model_type", "")
    return bool(model.batch_size) and not is_in_flight


def _context(folder: Path) -> int:
    """As the files around the tokenizer have it. Raises EngineError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return next(int(config[key]) for key in CONTEXT_KEYS if isinstance(config.get(key), int))
    except (OSError, ValueError, StopIteration):
        raise EngineError(
            "max_model_len: required: Triton does not tell the length of the context, nor does a config.json "
            "beside the tokenizer"
        ) from None


def _for_client(error: TritonError) -> RequestError:
    match error.fault:
        case Fault.REQUEST:
            return RequestError(ErrorCode.INVALID, "The model's server refused the request.")
        case Fault.BUSY:
            return RequestError(ErrorCode.OVERLOADED, "The model's server is at capacity.", RETRY_MS)
        case Fault.MODEL:
            return RequestError(ErrorCode.ENGINE_FAILED, "The model failed on this request.", RETRY_MS)
        case Fault.DEAD | Fault.AWAY:
            return RequestError(ErrorCode.ENGINE_FAILED, "The model's server can't be reached any more.", RETRY_MS)


def read_options(options: dict[str, Any]) -> TritonOptions:
    """Raises EngineError for an unknown name or a value of another type."""
    for name, value in options.items():
        if name not in (names := list(TritonOptions.__dataclass_fields__)):
            raise EngineError(f"options.{name}: unknown; the triton engine knows {', '.join(names)}")
        if name in ("reload", "group_by_length"):
            if not isinstance(value, bool):
                raise EngineError(f"options.{name}: expected true or false, got {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            noun = "seconds" if name == "canary_timeout" else "0 or more"
            raise EngineError(f"options.{name}: expected a number of {noun}, got {value!r}")
    return TritonOptions(**options)
