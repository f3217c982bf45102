"""A worker inside Triton's python backend: our scheduler and engine, with sessions in the place of sockets.

Imported by the model.py that `penstock triton-repo` writes, in the process that Triton starts for the model. Triton's
thread only takes requests; the batch is stepped by an event loop in a thread of its own, and all responses are sent by
a third, since each costs 0.3 to 0.5 ms.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import triton_python_backend_utils as pb_utils

from batching import logs
from batching.batcher import Batcher
from batching.protocol import PROTOCOL, FromWorker, ProtocolError, Submit, ToWorker, frame, messages_in, to_worker
from batching.scheduler import Scheduler, SchedulerConfig
from batching.switchboard import Switchboard
from batching.triton_parameters import Parameters, read_parameters
from batching.triton_responses import Responses
from engines import registry
from engines.base import EngineError, RemoteEngine, StepEngine, StreamEngine, VectorEngine
from engines.hosting import HOSTED_FAILURE, SessionAction, Welcome
from engines.types import GenerationRequest

LEASE = 15.0  # seconds without a word after which a gateway is taken for dead
LOOK_INTERVAL = 0.25  # seconds between looks at who has left
NO_TIMEOUT = 1e9  # seconds: a request says itself how long it may wait

log = logging.getLogger("penstock.triton_model")


class Session:
    """A gateway, as the switchboard sees it. `sender` answers the request that opened it, for as long as it lasts."""

    def __init__(self, sender: Any, responses: Responses) -> None:
        self.sender = sender
        self._responses = responses
        self.last_heard = time.monotonic()
        self.is_closed = False

    def send(self, message: FromWorker) -> None:
        """Nothing follows the end: its requests are aborted after it, and that has deltas too."""
        if not self.is_closed:
            self._responses.put(self.sender, frame(message))

    def close(self, reason: str = "") -> None:
        """`reason`: the error that it ends in."""
        self.is_closed = True
        self._responses.finish(self.sender, reason)


class TritonPythonModel:
    """What Triton asks for."""

    def initialize(self, args: dict[str, str]) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as for our own workers: see batching.supervisor
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        sys.setswitchinterval(0.0005)
        logs.configure("info", triton_model=args["model_name"])
        try:
            parameters = read_parameters(_strings(args), _version_folder(args), args["model_name"])
            self._host = Host(_load(parameters), parameters)
        except EngineError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._host.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._host.take(request)

    def finalize(self) -> None:
        self._host.stop()


def _load(parameters: Parameters) -> StepEngine:
    """Takes minutes. Raises EngineError."""
    registry.check_generates(parameters.engine)
    engine = registry.create(parameters.engine)
    assert not isinstance(engine, StreamEngine | RemoteEngine | VectorEngine), "the parameters allow no others"
    return engine


def _strings(args: dict[str, str]) -> dict[str, str]:
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return {key: value["string_value"] for key, value in parameters.items()}


def _version_folder(args: dict[str, str]) -> Path:
    return Path(args["model_repository"]) / args["model_version"]


class Host(Switchboard):
    """One engine's worker. `take` belongs to Triton's thread, everything else to the event loop's."""

    def __init__(self, engine: StepEngine, parameters: Parameters) -> None:
        scheduler = Scheduler(engine.info, SchedulerConfig(parameters.max_queue, NO_TIMEOUT))
        super().__init__(partial(Batcher, engine, scheduler))
        info = replace(engine.info, max_model_len=scheduler.max_model_len, vectors=None)  # a session has none
        self._welcome = msgspec.json.encode(Welcome(PROTOCOL, info))
        self._engine = engine
        self._responses = Responses(pb_utils)
        self._sessions: dict[int, Session] = {}
        self._failure = ""
        self._lock = threading.Lock()  # of what a request meets: a loop that runs, or its last word
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._responses.start()
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join()
        self._responses.stop()
        self._engine.close()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # --- Triton's thread

    def take(self, request: Any) -> None:
        """Returns at once: whatever is answered is answered later."""
        sender = request.get_response_sender()
        try:
            action, session = (_array(request, name).flat[0] for name in ("action", "session"))
            frames = _array(request, "frames")
            call = partial(self._handle_request, int(action), int(session), b"" if frames is None else frames.tobytes())
            with self._lock:
                if self._failure:
                    raise ProtocolError(self._failure)
                self._loop.call_soon_threadsafe(call, sender)
        except Exception as error:  # a request without an end would be waited for, for ever
            self._responses.finish(sender, str(error) or type(error).__name__)

    # --- the event loop's

    def _handle_request(self, action: int, session: int, frames: bytes, sender: Any) -> None:
        """Whatever happens it has an end, but the request that opens a session: that ends with the session."""
        error = ""
        try:
            self._act(action, session, frames, sender)
        except ProtocolError as reason:
            error = f"penstock: {reason}"
        except Exception:
            log.exception("a request can't be handled")
            error = "penstock: this request can't be handled"
        if error or action != SessionAction.OPEN:
            self._responses.finish(sender, error)

    def _act(self, action: int, session: int, frames: bytes, sender: Any) -> None:
        """Raises ProtocolError."""
        match action:
            case SessionAction.ASK:
                self._responses.put(sender, self._welcome, "welcome")
            case SessionAction.OPEN:
                self._open(session, sender)
            case SessionAction.SAY:
                self._hear(self._known(session), messages_in(frames, to_worker))
            case SessionAction.CLOSE:
                self._end(session)
            case _:
                raise ProtocolError(f"action {action}: unknown")

    def _open(self, session: int, sender: Any) -> None:
        if session in self._sessions:
            raise ProtocolError(f"session {session} is open already")
        self._sessions[session] = Session(sender, self._responses)
        self.join(self._sessions[session])

    def _known(self, session: int) -> Session:
        if session not in self._sessions:
            raise ProtocolError("no such session")
        return self._sessions[session]

    def _hear(self, session: Session, messages: Iterable[ToWorker]) -> None:
        session.last_heard = time.monotonic()
        for message in messages:
            self.handle(_in_our_time(message), session)

    def _end(self, session: int) -> None:
        if (known := self._sessions.pop(session, None)) is not None:
            self.leave(known)

    async def _look_after_sessions(self) -> None:
        """One whose gateway has died, or can't be reached any more, takes its requests along."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            for session, known in list(self._sessions.items()):
                # It may be closed meanwhile, and another one be open by its number.
                if not known.is_closed and await self._is_gone(known) and not known.is_closed:
                    log.warning("a gateway is gone: its requests are aborted")
                    self._end(session)

    async def _is_gone(self, known: Session) -> bool:
        try:
            cancelled = await asyncio.wrap_future(self._responses.is_cancelled(known.sender))
        except Exception:  # nobody would look after the others any more
            log.exception("a gateway can't be looked after: it is taken for gone")
            return True
        return cancelled or time.monotonic() - known.last_heard > LEASE

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._serve())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            self._fail("penstock: the model is unloaded")
        except BaseException:
            log.exception("the engine has failed")
            self._fail(HOSTED_FAILURE)

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.run())
            tasks.create_task(self._look_after_sessions())

    def _fail(self, reason: str) -> None:
        """Everybody is told, now and later."""
        with self._lock:
            self._failure = reason
        self._loop.run_until_complete(asyncio.sleep(0))  # requests that came just before
        for session in self._sessions.values():
            session.close(reason)
        self._sessions.clear()


def _in_our_time(message: ToWorker) -> ToWorker:
    """Its times are in seconds from now: the gateway may be on another host."""
    if not isinstance(message, Submit):
        return message
    now, request = time.monotonic(), message.request
    moved: GenerationRequest = replace(request, arrival=now + request.arrival, deadline=now + request.deadline)
    return Submit(moved)


def _array(request: Any, name: str) -> Any:
    """A tensor's values; None without it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
