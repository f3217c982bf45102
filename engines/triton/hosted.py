"""A worker of ours inside a Triton, as `penstock triton-repo` sets it up: the fifth convention.

Its tensors carry no request but the frames of a session, in which a step of its scheduler is one response for all
requests: a response costs Triton some 0.3 to 0.5 ms, whatever it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import msgspec

from engines.base import EngineError, RemoteEngine
from engines.hosting import HOSTED_TENSORS, SessionAction, Welcome
from engines.triton.client import TritonClient, responses, tensor_bytes
from engines.triton.engine import read_options, unload_errors
from engines.triton.errors import TritonError
from engines.triton.health import Health, HealthOptions
from engines.triton.model import TritonModel
from engines.types import EngineConfig, EngineInfo

KEEP_ALIVE = 2.0  # seconds: whoever says nothing for longer is taken for dead over there
LOOK_INTERVAL = 0.05  # seconds between looks at whether the model is back
CANARY_TIMEOUT = 2.5  # seconds

log = logging.getLogger("penstock.triton")


def is_hosted(model: TritonModel) -> bool:
    return {name: spec.datatype for name, spec in model.inputs.items()} == HOSTED_TENSORS


class HostedEngine(RemoteEngine):
    def __init__(self, config: EngineConfig, model: TritonModel) -> None:
        """Asks the worker what it is; blocks. Raises EngineError."""
        options = read_options(config.options)
        self._client = TritonClient(config.url, config.remote_model, config.remote_version)
        self._specs = model.inputs
        answer = self._client.ask(self._inputs(SessionAction.ASK), self._specs, "welcome")
        if not answer:
            raise EngineError(
                f"{model.where}: its answers are empty: Triton's Python needs another numpy (see docs/engines.md)"
            )
        try:
            welcome = msgspec.json.decode(answer, type=Welcome)
        except msgspec.MsgspecError:
            raise EngineError(
                f"{model.where}: it runs another version of Penstock: install the same one there and here"
            ) from None
        self.protocol = welcome.protocol
        self.info = _with_limits(welcome.info, config, model.where)
        health_options = HealthOptions(options.canary_timeout or CANARY_TIMEOUT, options.reload)
        self._health = Health(self._client, self._canary, config.name, health_options)
        self._unsaid: list[bytes] = []
        self._is_leaving = self._is_retired = False
        self._wake = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        return self._health.is_ready and not self._is_retired

    async def watch(self) -> None:
        self._client.connect()
        await self._health.watch()

    async def session(self) -> AsyncGenerator[bytes, None]:
        self._client.connect()
        while not self.is_ready:  # noqa: ASYNC110 - health is looked at, it tells nobody
            await asyncio.sleep(LOOK_INTERVAL)
        session, self._unsaid, self._is_leaving = secrets.randbits(63), [], False
        try:
            async with self._client.call() as call:
                await call.write(self._request(SessionAction.OPEN, session))
                async with _running(self._talk(call, session)):
                    async for response in responses(call):
                        self._health.saw_life()
                        yield tensor_bytes(response, "frames")
        except TritonError as error:
            log.warning("the session is lost: %s", error)
            self._health.suspect(error)

    def send(self, frames: bytes) -> None:
        self._unsaid.append(frames)
        self._wake.set()

    def hang_up(self) -> None:
        self._is_leaving = True
        self._wake.set()

    async def check_unload(self) -> None:
        with unload_errors():
            await self._client.repository.check_control()

    async def unload(self) -> None:
        """Triton waits with it for the end of our session, and so that is ended first, and none is opened."""
        self._is_retired = True
        self.hang_up()
        try:
            with unload_errors():
                async with self._health.retiring():
                    await self._client.repository.unload()
        except BaseException:
            self._is_retired = False
            raise

    def resume(self) -> None:
        self._is_retired = False
        self._health.resume()

    async def _talk(self, call: Any, session: int) -> None:
        """Should it fail, so does the call: else the session would be silent until it is taken for dead over there."""
        try:
            await self._say(call, session)
        except Exception:
            if not call.done():  # else what is read tells how it ended
                log.exception("the session can't go on")
                self._client.end_stream(call, "what was to be said could not be sent")

    async def _say(self, call: Any, session: int) -> None:
        """Everything that was to be said since the last time in one request."""
        while not self._is_leaving:
            frames, self._unsaid = b"".join(self._unsaid), []
            await call.write(self._request(SessionAction.SAY, session, frames))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), KEEP_ALIVE)
            self._wake.clear()
        await call.write(self._request(SessionAction.CLOSE, session))
        await call.done_writing()

    def _request(self, action: SessionAction, session: int, frames: bytes = b"") -> Any:
        """`frames` as they are: to list them as numbers would cost more than all the rest."""
        request = self._client.request(self._inputs(action, session), self._specs, "")
        if frames:
            request.inputs.add(name="frames", datatype=self._specs["frames"].datatype, shape=[len(frames)])
            request.raw_input_contents.append(frames)
        return request

    def _inputs(self, action: SessionAction, session: int = 0) -> dict[str, list[Any]]:
        return {"action": [action.value], "session": [session]}

    async def _canary(self) -> None:
        """Whether its event loop answers. Raises TritonError."""
        stream = self._client.stream(self._inputs(SessionAction.ASK), self._specs, "canary")
        async with contextlib.aclosing(stream):
            async for _ in stream:
                self._health.saw_life()


@contextlib.asynccontextmanager
async def _running(talk: Any) -> AsyncGenerator[None, None]:
    """Beside what is read, which is what tells how the call ended."""
    task = asyncio.create_task(talk)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _with_limits(info: EngineInfo, config: EngineConfig, where: str) -> EngineInfo:
    """Our own limit of the context may be lower than the worker's. Raises EngineError."""
    if config.max_model_len > info.max_model_len:
        raise EngineError(
            f"{where}: max_model_len: {config.max_model_len} exceeds its own context of {info.max_model_len} tokens"
        )
    description = f"Triton at {config.url}: {config.remote_model}, {info.description}"
    return replace(info, max_model_len=config.max_model_len or info.max_model_len, description=description)
