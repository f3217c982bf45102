"""One model on a Triton, by the raw gRPC stubs: the high-level client loses the codes of errors and the end of streams.

https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from engines.base import EngineError
from engines.triton.errors import Fault, TritonError, errors_translated, fault_in, translated
from engines.triton.model import TritonModel
from engines.triton.readers import Outputs
from engines.triton.repository import Repository, load_where_missing
from engines.triton.tensors import TensorSpec, Value, decode

START_TIMEOUT = 10.0  # seconds, for each of the questions at the start
# A server that comes back is found soon. Messages are as long as prompts and answers can be.
CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class TritonClient:
    """`url` is HOST:PORT. `version` "" leaves the choice to Triton's policy. Belongs to one event loop."""

    def __init__(self, url: str, name: str, version: str) -> None:
        self._url, self._name, self._version = url, name, version
        self._stub: Any = None
        self.repository: Repository
        self._calls: dict[Any, TritonError | None] = {}  # that are open; those ended by us with the reason

    # --- before the event loop runs

    def describe(self, *, may_load: bool = False) -> TritonModel:
        """Blocks. `may_load`: have it loaded where it is not. Raises EngineError."""
        where = f"{self._url}: model {self._name}" + f" version {self._version}" * bool(self._version)
        asked = {"name": self._name, "version": self._version}
        try:
            with grpc.insecure_channel(self._url, options=CHANNEL) as channel:
                stub = GRPCInferenceServiceStub(channel)
                if may_load:
                    load_where_missing(stub, self._name, self._version, where)
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

    def ask(self, inputs: Mapping[str, Sequence[Value]], specs: Mapping[str, TensorSpec], output: str) -> bytes:
        """An output of a model's only answer. Blocks. Raises EngineError."""
        where = f"{self._url}: model {self._name}"
        try:
            with grpc.insecure_channel(self._url, options=CHANNEL) as channel:
                call = GRPCInferenceServiceStub(channel).ModelStreamInfer(
                    iter([self.request(inputs, specs, "ask")]), timeout=START_TIMEOUT
                )
                answers = list(call)
        except grpc.RpcError as error:
            raise EngineError(_start_failure(self._url, where, error)) from None
        if not answers or answers[0].error_message:
            message = answers[0].error_message if answers else "no answer"
            raise EngineError(f"{where}: it does not answer: {message[:300]}")
        return tensor_bytes(answers[0].infer_response, output)

    # --- in it

    def connect(self) -> None:
        """Once: by whoever comes first."""
        if self._stub is None:
            self._stub = GRPCInferenceServiceStub(grpc.aio.insecure_channel(self._url, options=CHANNEL))
            self.repository = Repository(self._stub, self._name, self._version)

    async def stream(
        self, inputs: Mapping[str, Sequence[Value]], specs: Mapping[str, TensorSpec], request_id: str
    ) -> AsyncGenerator[Outputs, None]:
        """Every response's tensors. Closing it before the last one cancels the request. Raises TritonError.

        A gRPC stream each: a shared one can't cancel one of its requests. No codes of errors are asked for
        ("triton_grpc_error"): see `call`.
        """
        async with self.call() as call:
            await call.write(self.request(inputs, specs, request_id))
            await call.done_writing()
            async for response in responses(call):
                yield {name: decode(kind, data) for name, kind, data in _tensors(response)}

    @contextlib.asynccontextmanager
    async def call(self) -> AsyncGenerator[Any, None]:
        """A gRPC stream of requests and their responses. What fails within is a TritonError.

        Nothing that has ended is cancelled: until 25.03 Triton can die of cancelled streams (its issues 7368 and 8034),
        and where codes of errors were asked for did so within some hundreds of them.
        """
        call = self._stub.ModelStreamInfer()
        self._calls[call] = None
        try:
            yield call
        except asyncio.CancelledError:
            if (reason := self._calls[call]) is not None:
                raise reason from None
            raise
        except grpc.aio.AioRpcError as error:
            raise translated(error) from None
        except asyncio.InvalidStateError:  # it failed before the request was written
            raise TritonError(Fault.AWAY, f"{(await call.code()).name}: {await call.details()}") from None
        finally:
            del self._calls[call]
            if not call.done():
                call.cancel()

    def end_streams(self, message: str) -> None:
        """All of them, in a TritonError."""
        for call in list(self._calls):
            self.end_stream(call, message)

    def end_stream(self, call: Any, message: str) -> None:
        """One that is open."""
        self._calls[call] = TritonError(Fault.AWAY, message)
        call.cancel()

    async def is_ready(self, timeout: float) -> bool:
        """Whether it is loaded. Raises TritonError: the server does not answer."""
        asked = messages.ModelReadyRequest(name=self._name, version=self._version)
        with errors_translated():
            return bool((await self._stub.ModelReady(asked, timeout=timeout)).ready)

    def request(self, inputs: Mapping[str, Sequence[Value]], specs: Mapping[str, TensorSpec], request_id: str) -> Any:
        request = messages.ModelInferRequest(model_name=self._name, model_version=self._version, id=request_id)
        for name, values in inputs.items():
            spec = specs[name]
            request.inputs.add(name=name, datatype=spec.datatype, shape=spec.shape_of(len(values)))
            request.raw_input_contents.append(spec.encode(values))
        return request


def _specs(tensors: Sequence[Any]) -> dict[str, TensorSpec]:
    return {tensor.name: TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors}


async def responses(call: Any) -> AsyncGenerator[Any, None]:
    """Those that hold something, to the end. Raises TritonError, as a request's error comes."""
    while (response := await call.read()) is not grpc.aio.EOF:
        if response.error_message:
            raise TritonError(fault_in(response.error_message), response.error_message)
        if response.infer_response.outputs:
            yield response.infer_response


def tensor_bytes(response: Any, name: str) -> bytes:
    """A tensor as it is; b"" without it."""
    return next((data for found, _, data in _tensors(response) if found == name), b"")


def _tensors(response: Any) -> list[tuple[str, str, bytes]]:
    """Names, datatypes, and what they hold."""
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return [(tensor.name, tensor.datatype, data) for tensor, data in pairs]


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
