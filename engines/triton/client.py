"""One model on a Triton, by the raw gRPC stubs: the high-level client loses the codes of errors and the end of streams.

https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from engines.base import EngineError
from engines.triton.model import TritonModel
from engines.triton.readers import Outputs
from engines.triton.tensors import TensorSpec, Value, decode

START_TIMEOUT = 10.0  # seconds, for each of the questions at the start
LOAD_TIMEOUT = 600.0
# A server that comes back is found soon. Messages are as long as prompts and answers can be.
CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Fault(Enum):
    """What a failed call says of the model."""

    REQUEST = auto()  # nothing: this request was wrong
    BUSY = auto()  # its own queue is full
    MODEL = auto()  # it failed on this request
    DEAD = auto()  # its process is gone, or does not move
    AWAY = auto()  # it can't be reached


class TritonError(Exception):
    """A call failed. The message is the server's own: for the log, not for clients."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class TritonClient:
    """`url` is HOST:PORT. `version` "" leaves the choice to Triton's policy. Belongs to one event loop."""

    def __init__(self, url: str, name: str, version: str) -> None:
        self._url, self._name, self._version = url, name, version
        self._stub: Any = None
        self._calls: dict[Any, TritonError | None] = {}  # that are open; those ended by us with the reason
        self._num_loads = 0

    # --- before the event loop runs

    def describe(self) -> TritonModel:
        """Blocks. Raises EngineError."""
        where = f"{self._url}: model {self._name}" + f" version {self._version}" * bool(self._version)
        asked = {"name": self._name, "version": self._version}
        try:
            with grpc.insecure_channel(self._url, options=CHANNEL) as channel:
                stub = GRPCInferenceServiceStub(channel)
                metadata = stub.ModelMetadata(messages.ModelMetadataRequest(**asked), timeout=START_TIMEOUT)
                config = stub.ModelConfig(messages.ModelConfigRequest(**asked), timeout=START_TIMEOUT).config
        except grpc.RpcError as error:
            raise EngineError(_start_failure(self._url, where, error)) from None
        return TritonModel(
            where=where,
            inputs=_specs(metadata.inputs),
            outputs=_specs(metadata.outputs),
            decoupled=config.model_transaction_policy.decoupled,
            batch_size=config.max_batch_size if config.HasField("dynamic_batching") else 0,
            instances=max(1, sum(group.count for group in config.instance_group)),
            parameters={key: value.string_value for key, value in config.parameters.items()},
        )

    # --- in it

    def connect(self) -> None:
        self._stub = GRPCInferenceServiceStub(grpc.aio.insecure_channel(self._url, options=CHANNEL))

    async def stream(
        self, inputs: Mapping[str, Sequence[Value]], specs: Mapping[str, TensorSpec], request_id: str
    ) -> AsyncGenerator[Outputs, None]:
        """Every response's tensors. Closing it before the last one cancels the request. Raises TritonError.

        A gRPC stream each: a shared one can't cancel one of its requests. Nothing that has ended is cancelled, and
        no codes of errors are asked for ("triton_grpc_error"): until 25.03 Triton can die of cancelled streams
        (its issues 7368 and 8034), and where codes were asked for did so within some hundreds of them.
        """
        call = self._stub.ModelStreamInfer()
        self._calls[call] = None
        try:
            await call.write(self._request(inputs, specs, request_id))
            await call.done_writing()
            while (response := await call.read()) is not grpc.aio.EOF:
                if response.error_message:
                    raise TritonError(_fault_in(response.error_message), response.error_message)
                if response.infer_response.outputs:
                    yield _outputs(response.infer_response)
        except asyncio.CancelledError:
            if (reason := self._calls[call]) is not None:
                raise reason from None
            raise
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        except asyncio.InvalidStateError:  # it failed before the request was written
            raise TritonError(Fault.AWAY, f"{(await call.code()).name}: {await call.details()}") from None
        finally:
            del self._calls[call]
            if not call.done():
                call.cancel()

    def end_streams(self, message: str) -> None:
        """All of them, in a TritonError."""
        for call in list(self._calls):
            self._calls[call] = TritonError(Fault.AWAY, message)
            call.cancel()

    async def is_ready(self, timeout: float) -> bool:
        """Whether it is loaded. Raises TritonError: the server does not answer."""
        asked = messages.ModelReadyRequest(name=self._name, version=self._version)
        with _errors_translated():
            return bool((await self._stub.ModelReady(asked, timeout=timeout)).ready)

    async def reload(self) -> None:
        """Anew, with new processes. Raises TritonError.

        A load with nothing changed does nothing, so a parameter is changed that means nothing to anybody.
        """
        with _errors_translated():
            for name in await self._own_models():
                await self._load_anew(name)

    async def _own_models(self) -> list[str]:
        """What an ensemble is made of, for it has no process of its own."""
        config = await self._config(self._name)
        return [step.model_name for step in config.ensemble_scheduling.step] or [self._name]

    async def _load_anew(self, name: str) -> None:
        self._num_loads += 1
        config = await self._config(name)
        config.parameters["penstock_load"].string_value = f"{id(self)}-{self._num_loads}"
        request = messages.RepositoryModelLoadRequest(model_name=name)
        request.parameters["config"].string_param = json_format.MessageToJson(config, preserving_proto_field_name=True)
        await self._stub.RepositoryModelLoad(request, timeout=LOAD_TIMEOUT)

    async def _config(self, name: str) -> Any:
        return (await self._stub.ModelConfig(messages.ModelConfigRequest(name=name), timeout=START_TIMEOUT)).config

    def _request(self, inputs: Mapping[str, Sequence[Value]], specs: Mapping[str, TensorSpec], request_id: str) -> Any:
        request = messages.ModelInferRequest(model_name=self._name, model_version=self._version, id=request_id)
        for name, values in inputs.items():
            spec = specs[name]
            request.inputs.add(name=name, datatype=spec.datatype, shape=spec.shape_of(len(values)))
            request.raw_input_contents.append(spec.encode(values))
        return request


def _specs(tensors: Sequence[Any]) -> dict[str, TensorSpec]:
    return {tensor.name: TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors}


def _outputs(response: Any) -> Outputs:
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {tensor.name: decode(tensor.datatype, data) for tensor, data in pairs}


def _start_failure(url: str, where: str, error: Any) -> str:
    details = " ".join((error.details() or "").split())
    match error.code():
        case grpc.StatusCode.UNAVAILABLE if "is not ready" not in details and "no available" not in details:
            return f"{url}: no Triton can be reached at this address by gRPC"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{url}: Triton does not answer within {START_TIMEOUT:.0f} s"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"{url}: expected the gRPC port of a Triton, something else answers"
    return f"{where}: Triton does not serve it: {details[:300]}"


@contextlib.contextmanager
def _errors_translated() -> Any:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _translated(error) from None


def _translated(error: Any) -> TritonError:
    message = f"{error.code().name}: {error.details()}"
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            return TritonError(Fault.REQUEST, message)
        case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return TritonError(Fault.AWAY, message)
        case grpc.StatusCode.UNAVAILABLE:
            fault = _fault_in(error.details() or "")
            return TritonError(Fault.AWAY if fault is Fault.MODEL else fault, message)
    return TritonError(_fault_in(error.details() or ""), message)


# As Triton's own words have it.
_WORDS = {
    Fault.DEAD: ("stub process",),
    Fault.BUSY: ("maximum queue size", "timeout expired"),
    Fault.AWAY: ("unknown model", "is not ready", "no available versions"),
    Fault.REQUEST: ("unexpected shape", "inference input", "input byte size", "batch-size must be"),
}


def _fault_in(message: str) -> Fault:
    """Where no code tells. What is not Triton's own is the model's."""
    text = message.lower()
    return next((fault for fault, words in _WORDS.items() if any(part in text for part in words)), Fault.MODEL)
