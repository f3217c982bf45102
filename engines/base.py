"""The protocols that an engine can speak, and the thread that most engines run in."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from engines.steps import StepPlan, StepResult, TextBatch
from engines.types import EngineInfo, GenerationRequest, Grammar, OutputDelta, RequestError

Work = TypeVar("Work")
Result = TypeVar("Result")
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class EngineError(Exception):
    """An engine can't be built from its configuration. The message is one line that says what to change."""


class OutOfMemory(Exception):
    """A step found too little memory and has sampled nothing, or was submitted behind such a one and did not run.

    The engine is sound. Whether it has taken note of the plan's `new`, `finished` and `preempted` is not known.
    """


class Grammars(Protocol):
    """The grammars that an engine has ready. A request with one may be scheduled once it is prepared."""

    def is_ready(self, grammar: Grammar) -> bool: ...

    async def prepare(self, grammar: Grammar, account: str = "", *, was_used: bool = False) -> RequestError | None:
        """Compile it, within bounds of time and memory; the answer, if any, refuses it.

        `account` is whom a trial is for: they take turns. `was_used`: an engine has sampled by it, so that it was tried
        there: it is compiled at once.
        """


class StepEngine(Protocol):
    """An engine whose every step our scheduler decides. It owns the KV memory that the plan's block tables name.

    `submit` returns at once; steps run in the order they were submitted, so that planning the next one can overlap
    the running one. A failed step sets its future's exception; the engine is then unusable, unless that is OutOfMemory:
    then every later step fails likewise until `resume` is called. So it is with `embed`, whose batches take their turns
    with the steps: it is for engines with `info.vectors`, and changes nothing of what steps compute.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def grammars(self) -> Grammars | None: ...

    def submit(self, plan: StepPlan) -> Future[StepResult]: ...

    def embed(self, batch: TextBatch) -> Future[list[bytes]]: ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


class StreamEngine(ABC):
    """An engine that batches inside (Triton): our queue orders, bounds and groups what it is sent.

    All methods belong to the worker's event loop.
    """

    info: EngineInfo

    @abstractmethod
    def generate(self, request: GenerationRequest, padded_len: int) -> AsyncGenerator[OutputDelta, None]:
        """The answer: the last delta has a finish reason, an ERROR where something fails. Closing it stops the work.

        `padded_len` is the length that token ids may be padded to, to be of one shape with others sent at the same
        time.
        """

    @abstractmethod
    async def watch(self) -> None:
        """Look after the engine, for as long as the worker lives."""

    @abstractmethod
    def capacity(self) -> int:
        """How many requests it can run at once; 0 while it is away."""

    # Where what runs the model can load and unload it:

    async def check_unload(self) -> None:  # noqa: B027 - not every server of models can
        """Changes nothing. Raises EngineError: what runs the model would refuse to unload it."""

    async def unload(self) -> None:  # noqa: B027
        """Have it unloaded by what runs it, on purpose: nothing here loads it again. No request is under way.

        Raises EngineError; then everything is as before.
        """

    def resume(self) -> None:  # noqa: B027
        """It is to serve after all, should it have been unloaded or not: look after it as before."""


class RemoteEngine(ABC):
    """A worker of ours in another server's process: its queue, its scheduler and its engine. What it is told and what
    it answers are the frames that a gateway and a worker exchange; `protocol` says which messages it knows.

    All methods belong to the worker's event loop.
    """

    info: EngineInfo
    protocol: str

    @abstractmethod
    async def watch(self) -> None:
        """Look after the server, for as long as the worker lives."""

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it can take requests."""

    @abstractmethod
    def session(self) -> AsyncGenerator[bytes, None]:
        """Open a session, when the engine is ready: whole frames, as they come. It ends when the session is lost, and
        then all requests of the session are; closing it ends the session."""

    @abstractmethod
    def send(self, frames: bytes) -> None:
        """Say it in the open session."""

    @abstractmethod
    def hang_up(self) -> None:
        """End the session at its next opportunity: it has no requests."""

    # As of a StreamEngine:

    @abstractmethod
    async def check_unload(self) -> None: ...

    @abstractmethod
    async def unload(self) -> None: ...

    @abstractmethod
    def resume(self) -> None: ...


class ThreadedEngine(ABC, Generic[Work, Result]):
    """Its steps run one after another in a thread of their own, off the worker's event loop."""

    def __init__(self, info: EngineInfo) -> None:
        self.info = info
        self._steps: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._is_out_of_memory = False  # of the engine's thread
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @abstractmethod
    def execute(self, plan: Work) -> Result:
        """Run one step. Called in the engine's thread only."""

    def submit(self, plan: Work) -> Future[Result]:
        return self._enqueue(self.execute, plan)

    def _enqueue(self, execute: Callable[[Item], Answer], item: Item) -> Future[Answer]:
        future: Future[Answer] = Future()
        self._steps.put((partial(self._attempt, execute, item), future))
        return future

    def resume(self) -> None:
        """The steps submitted from now on run, whatever became of those before."""
        self._steps.put((self._forget_shortage, Future()))

    def _forget_shortage(self) -> None:
        self._is_out_of_memory = False

    def _attempt(self, execute: Callable[[Item], Answer], item: Item) -> Answer:
        if self._is_out_of_memory:
            raise OutOfMemory("submitted behind a step that found too little memory")
        try:
            return execute(item)
        except Exception as error:
            if not self.lacks_memory(error):
                raise
            reason = str(error)
        # Not in the handler: what the failed step had allocated hangs on its exception.
        self._is_out_of_memory = True
        self.free_memory()
        raise OutOfMemory(reason)

    def lacks_memory(self, error: Exception) -> bool:
        """Whether a step raised this for want of memory, and left the engine sound."""
        return isinstance(error, MemoryError)

    def free_memory(self) -> None:
        """Give back what is kept for later allocations. Called in the engine's thread only."""

    def close(self) -> None:
        """End the thread after the steps already submitted."""
        self._steps.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            execute, future = step
            if not future.set_running_or_notify_cancel():
                continue  # the loop that awaited it has ended
            try:
                future.set_result(execute())
            except BaseException as error:  # the loop that awaits the future decides what a failed step means
                future.set_exception(error)


class ThreadedStepEngine(ThreadedEngine[StepPlan, StepResult]):
    """A StepEngine in a thread of its own."""

    def __init__(self, info: EngineInfo, grammars: Grammars | None = None) -> None:
        self.grammars = grammars
        super().__init__(info)

    def embed(self, batch: TextBatch) -> Future[list[bytes]]:
        return self._enqueue(self.execute_texts, batch)

    def execute_texts(self, batch: TextBatch) -> list[bytes]:
        """As `VectorEngine.execute`. Called in the engine's thread only."""
        raise EngineError("this engine has no embeddings of a generating model")


class VectorEngine(ThreadedEngine[TextBatch, list[bytes]]):
    """Makes vectors of texts: of each row `info.vectors.dim` float32s, little endian, whoever else is in the batch.

    `info.token_budget` is what a batch may hold, padding included.
    """
