"""Triton's model control: loading and unloading. It knows whole models; a version of several goes by a version policy.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as messages

from engines.base import EngineError
from engines.triton.errors import Fault, TritonError, errors_translated

CONTROL_TIMEOUT = 10.0  # seconds, for what Triton answers at once
LOAD_TIMEOUT = 600.0
UNLOAD_PATIENCE = 60.0  # until Triton has let the model go: others' streams may still run on it
POLL_INTERVAL = 0.1

log = logging.getLogger("penstock.triton")


class Repository:
    """One model, or one version of it, on a Triton. `version` "" is the model. Belongs to one event loop."""

    def __init__(self, stub: Any, name: str, version: str) -> None:
        self._stub, self._name, self._version = stub, name, version
        self._num_loads = 0

    async def reload(self) -> None:
        """Anew, with new processes. Raises TritonError.

        A load with nothing changed does nothing, so a parameter is changed that means nothing to anybody.
        """
        with errors_translated():
            for name in await self._own_models():
                await self._load_anew(name)

    async def check_control(self) -> None:
        """Whether Triton can be told to unload; changes nothing: no model has an empty name. Raises TritonError."""
        try:
            with errors_translated():
                await self._stub.RepositoryModelUnload(_unload(""), timeout=CONTROL_TIMEOUT)
        except TritonError as error:
            if error.fault is Fault.AWAY or is_forbidden(str(error)):
                raise

    async def unload(self) -> None:
        """Returns when it is gone; nothing that was gone before is an error. Raises TritonError.

        Where other versions are ready they stay: they are not loaded anew. The steps of an ensemble go with it, except
        those that something else uses or that were loaded by their own names.
        """
        with errors_translated():
            ready = _ready_versions(await self._index(), self._name)
            if self._version in ready and len(ready) > 1:
                config = await self._config(self._name)
                await self._stub.RepositoryModelLoad(
                    _with_versions(self._name, config, ready - {self._version}), timeout=LOAD_TIMEOUT
                )
            elif not self._version or self._version in ready:
                await self._stub.RepositoryModelUnload(_unload(self._name), timeout=CONTROL_TIMEOUT)
            await self._until_gone()

    async def _until_gone(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNLOAD_PATIENCE):
                while _is_loaded(await self._index(), self._name, self._version):  # noqa: ASYNC110 - Triton tells nobody
                    await asyncio.sleep(POLL_INTERVAL)
                return
        log.warning("%s: Triton unloads it, but does not let it go yet", self._name)

    async def _index(self) -> Any:
        return await self._stub.RepositoryIndex(messages.RepositoryIndexRequest(), timeout=CONTROL_TIMEOUT)

    async def _own_models(self) -> list[str]:
        """What an ensemble is made of, for it has no process of its own."""
        config = await self._config(self._name)
        return [step.model_name for step in config.ensemble_scheduling.step] or [self._name]

    async def _load_anew(self, name: str) -> None:
        self._num_loads += 1
        config = await self._config(name)
        config.parameters["penstock_load"].string_value = f"{id(self)}-{self._num_loads}"
        await self._stub.RepositoryModelLoad(_load(name, config), timeout=LOAD_TIMEOUT)

    async def _config(self, name: str) -> Any:
        return (await self._stub.ModelConfig(messages.ModelConfigRequest(name=name), timeout=CONTROL_TIMEOUT)).config


def load_where_missing(stub: Any, name: str, version: str, where: str) -> None:
    """Blocks, until it is ready. Beside other versions that are ready; where none is, Triton loads those that the
    model's own policy names. `where` is for the message.

    Raises grpc.RpcError; EngineError where Triton refuses to load it.
    """
    asked = messages.ModelReadyRequest(name=name, version=version)
    if stub.ModelReady(asked, timeout=CONTROL_TIMEOUT).ready:
        return
    ready = _ready_versions(stub.RepositoryIndex(messages.RepositoryIndexRequest(), timeout=CONTROL_TIMEOUT), name)
    request = _load(name)
    if version and ready:
        config = stub.ModelConfig(messages.ModelConfigRequest(name=name), timeout=CONTROL_TIMEOUT).config
        request = _with_versions(name, config, ready | {version})
    try:
        stub.RepositoryModelLoad(request, timeout=LOAD_TIMEOUT)
    except grpc.RpcError as error:
        details = " ".join((error.details() or error.code().name).split())
        raise EngineError(f"{where}: Triton does not serve it, and does not load it: {details[:300]}") from None


def is_forbidden(message: str) -> bool:
    """Triton loads and unloads nothing but what its own command line and folders say."""
    return "is not allowed" in message


def _load(name: str, config: Any = None) -> Any:
    request = messages.RepositoryModelLoadRequest(model_name=name)
    if config is not None:
        text = json_format.MessageToJson(config, preserving_proto_field_name=True)
        request.parameters["config"].string_param = text
    return request


def _with_versions(name: str, config: Any, versions: Iterable[str]) -> Any:
    """Load it, and of its versions these alone. Those that are loaded stay as they are."""
    del config.version_policy.specific.versions[:]
    config.version_policy.specific.versions.extend(sorted(int(version) for version in versions))
    return _load(name, config)


def _unload(name: str) -> Any:
    request = messages.RepositoryModelUnloadRequest(model_name=name)
    request.parameters["unload_dependents"].bool_param = True
    return request


def _ready_versions(index: Any, name: str) -> set[str]:
    return {model.version for model in index.models if model.name == name and model.state == "READY"}


def _is_loaded(index: Any, name: str, version: str) -> bool:
    states = {model.state for model in index.models if model.name == name and version in ("", model.version)}
    return bool(states & {"READY", "LOADING", "UNLOADING"})
