"""Model control with several gateways: they ask the process that owns the workers, and it tells all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from itertools import count
from pathlib import Path

import msgspec

from batching.protocol import ProtocolError, frame, read_message
from server.lifecycle import ModelControlError
from server.model_control import LocalControl
from server.model_state import ModelState
from server.registry import Deployment, Registry

SEEN_TIMEOUT = 2.5  # seconds for every gateway to know a new state; one that is stopped learns it when it goes on
START_TIMEOUT = 30.0
SOCKET = "control.sock"  # in the folder of the workers' sockets

log = logging.getLogger("penstock.control")


class Ask(msgspec.Struct, tag="ask", array_like=True, frozen=True):
    number: int
    deployment: str
    load: bool  # or unload
    drain_seconds: float | None = None


class Answer(msgspec.Struct, tag="answer", array_like=True, frozen=True):
    """Of ask `number`. `error` is a ModelControlError's, with its code."""

    number: int
    error: str = ""
    code: str = ""


class States(msgspec.Struct, tag="states", array_like=True, frozen=True):
    """Of every deployment, as they are now."""

    number: int
    states: dict[str, ModelState]


class Seen(msgspec.Struct, tag="seen", array_like=True, frozen=True):
    """These states hold here."""

    number: int


ToOwner = Ask | Seen
FromOwner = Answer | States
to_owner: msgspec.msgpack.Decoder[ToOwner] = msgspec.msgpack.Decoder(ToOwner)
from_owner: msgspec.msgpack.Decoder[FromOwner] = msgspec.msgpack.Decoder(FromOwner)

BROKEN = (asyncio.IncompleteReadError, ConnectionError, ProtocolError)


class _Gateway:
    """One that is connected. `seen`: the number of the last states that hold there."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.seen = -1


class ControlServer:
    """In the process that owns the workers."""

    def __init__(self, registry: Registry, folder: Path, drain: float) -> None:
        self._registry = registry
        self._path = folder / SOCKET
        self._control = LocalControl(registry, drain, self._announce)
        self._gateways: set[_Gateway] = set()
        self._listening: asyncio.Server | None = None  # held: uvloop ends one that nobody holds
        self._number = 0
        self._changed = asyncio.Condition()
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._control.start()
        self._listening = await asyncio.start_unix_server(self._serve, path=str(self._path))
        self._path.chmod(0o600)

    async def stop(self) -> None:
        await self._control.stop()
        if self._listening is not None:
            self._listening.close()

    async def _announce(self, until_known: bool) -> None:
        self._number += 1
        for gateway in self._gateways:
            self._tell(gateway)
        if until_known:
            await self._until_all_know()

    async def _until_all_know(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEEN_TIMEOUT), self._changed:
                number = self._number
                await self._changed.wait_for(lambda: all(gateway.seen >= number for gateway in self._gateways))
                return
        log.warning("a gateway has not heard of the models' new states")

    def _tell(self, gateway: _Gateway) -> None:
        states = {name: deployment.state for name, deployment in self._registry.deployments.items()}
        gateway.writer.write(frame(States(self._number, states)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gateway = _Gateway(writer)
        self._gateways.add(gateway)
        self._tell(gateway)
        try:
            while True:
                await self._take(await read_message(reader, to_owner), gateway)
        except (*BROKEN, asyncio.CancelledError):
            pass  # it is gone, or we are
        finally:
            writer.close()
            self._gateways.discard(gateway)
            await self._notify()

    async def _take(self, message: ToOwner, gateway: _Gateway) -> None:
        if isinstance(message, Seen):
            gateway.seen = message.number
            await self._notify()
            return
        task = asyncio.create_task(self._answer(message, gateway))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _answer(self, ask: Ask, gateway: _Gateway) -> None:
        answer = Answer(ask.number)
        try:
            if ask.load:
                await self._control.load(ask.deployment)
            else:
                await self._control.unload(ask.deployment, ask.drain_seconds)
        except ModelControlError as error:
            answer = Answer(ask.number, str(error), error.code)
        except Exception:
            log.exception("model control failed")
            answer = Answer(ask.number, "The model could not be controlled; see the log.", "control_failed")
        if not gateway.writer.is_closing():
            gateway.writer.write(frame(answer))


class ControlClient:
    """In a gateway: keeps its registry's states those of the owner, and asks it (`model_control.ModelControl`)."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self._registry = registry
        self._path = folder / SOCKET
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._told = asyncio.Event()
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[Answer]] = {}

    async def start(self) -> None:
        """Returns when the states are known here. Raises OSError."""
        reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        self._reading = asyncio.create_task(self._read(reader))
        async with asyncio.timeout(START_TIMEOUT):
            await self._told.wait()

    async def stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()

    async def load(self, deployment: str) -> None:
        await self._ask(Ask(next(self._numbers), deployment, load=True))

    async def unload(self, deployment: str, drain_seconds: float | None) -> None:
        await self._ask(Ask(next(self._numbers), deployment, load=False, drain_seconds=drain_seconds))

    async def _ask(self, ask: Ask) -> None:
        if self._writer is None or self._reading is None or self._reading.done():
            raise _gone()
        answered = self._asked[ask.number] = asyncio.get_running_loop().create_future()
        self._writer.write(frame(ask))
        try:
            answer = await answered
        finally:
            del self._asked[ask.number]
        if answer.error:
            raise ModelControlError(answer.error, answer.code)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                message = await read_message(reader, from_owner)
                if isinstance(message, States):
                    await self._take(message)
                elif (answered := self._asked.get(message.number)) is not None and not answered.done():
                    answered.set_result(message)
        except BROKEN:
            log.warning("the process that owns the workers is gone")
        finally:
            for answered in self._asked.values():
                if not answered.done():
                    answered.set_exception(_gone())

    async def _take(self, message: States) -> None:
        """A model that is ready at its owner's is ready here when its workers are connected."""
        news = [(d, state) for name, state in message.states.items() if (d := self._registry.deployments.get(name))]
        await asyncio.gather(*(_connected(d) for d, state in news if state.is_served and not d.state.is_served))
        for deployment, state in news:
            deployment.state.phase, deployment.state.reason = state.phase, state.reason
        self._told.set()
        assert self._writer is not None
        self._writer.write(frame(Seen(message.number)))


async def _connected(deployment: Deployment) -> None:
    await asyncio.gather(*(replica.link.refresh() for replica in deployment.replicas))


def _gone() -> ModelControlError:
    return ModelControlError("The process that owns the workers is gone: the server is about to end.", "shutting_down")
