"""Child processes: how we start, watch, restart and end one, and its own side of that.

A child reads one line of JSON from its standard input, writes one (Started) to its standard output when it serves or
knows that it can't, and ends when its standard input does: with the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Protocol

import msgspec

from batching.protocol import Started

MAX_BACKOFF = 30.0  # seconds
PASSED_ON = {"PENSTOCK_CPU_LEVEL", "PENSTOCK_KERNEL_DIR"}  # of our own variables: see engines.torch.cpu.library
STABLE_AFTER = 60.0  # seconds of service after which a death counts as the first again

log = logging.getLogger("penstock.supervisor")


class Supervisor(ABC):
    """One child process, started again when it dies."""

    module: ClassVar[str]  # what it runs: python -m module
    what: ClassVar[str]  # the word for it
    failure: ClassVar[type[Exception]]  # what a start that fails raises, with its reason
    own_session: ClassVar[bool] = False  # apart from our terminal, whose Ctrl-C then reaches us alone

    def __init__(self, name: str, stop_timeout: float, inherited: tuple[int, ...] = ()) -> None:
        """`stop_timeout`: seconds from the end of its input to its own, before it is killed. `inherited`: descriptors
        that it shares with us."""
        self.name = name
        self.restarts = 0  # tried, in all
        self._stop_timeout = stop_timeout
        self._inherited = inherited
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._may_restart = asyncio.Event()
        self._may_restart.set()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_watched(self) -> bool:
        """It has served, and is started again whenever it dies."""
        return self._watching is not None

    async def start(self) -> None:
        """Returns when it serves; after a stop too. Raises `failure` with its reason when it can't."""
        self._may_restart.set()
        await self._spawn()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
        await self._end_process()

    def let_restart(self, allowed: bool) -> None:
        """Whether it is started again when it dies; it is from every `start` on."""
        if allowed:
            self._may_restart.set()
        else:
            self._may_restart.clear()

    @abstractmethod
    def _configuration(self) -> object:
        """What its one line says."""

    @abstractmethod
    async def _gone(self) -> None:
        """Wait for its death."""

    async def _serves(self, started: Started) -> None:  # noqa: B027 - not every kind has something to add
        """It has said so. Raises `failure`."""

    def _environment(self) -> dict[str, str]:
        """Ours without what is for the started process alone: keys, addresses with passwords."""
        return {
            name: value for name, value in os.environ.items() if name in PASSED_ON or not name.startswith("PENSTOCK_")
        }

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self.module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment(),
            pass_fds=self._inherited,
            start_new_session=self.own_session,
        )
        try:
            started = await self._handshake(self._process)
            if started.error:
                raise self.failure(started.error)
            await self._serves(started)
        except BaseException:
            await self._end_process()
            raise

    async def _handshake(self, process: asyncio.subprocess.Process) -> Started:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(self._configuration()) + b"\n")
        if not (line := await process.stdout.readline()):
            code = await process.wait()
            return Started(error=f"{self.name}: its {self.what} died while starting (exit status {code}); see the log")
        return msgspec.json.decode(line, type=Started)

    async def _watch(self) -> None:
        """Runs for its whole life: every death is followed by a new start, later and later."""
        failures = 0
        while True:
            serving_since = time.monotonic()
            await self._gone()
            await self._end_process()
            if time.monotonic() - serving_since > STABLE_AFTER:
                failures = 0
            failures = await self._restart(failures)

    async def _restart(self, failures: int) -> int:
        """Start again until it works; the answer is the number of deaths and failed starts in a row."""
        while True:
            delay = 0.0 if not failures else min(0.5 * 2 ** (failures - 1), MAX_BACKOFF)
            log.error("%s: the %s is gone; starting it again in %.1f s", self.name, self.what, delay)
            await asyncio.sleep(delay)
            await self._may_restart.wait()
            failures += 1
            self.restarts += 1
            try:
                await self._spawn()
            except self.failure as error:
                log.error("%s: the %s does not start: %s", self.name, self.what, error)
            except Exception:  # whatever it is: nobody else would try again
                log.exception("%s: the %s does not start", self.name, self.what)
            else:
                return failures

    async def _end_process(self) -> None:
        if (process := self._process) is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), self._stop_timeout)
        except TimeoutError:
            process.kill()
            await process.wait()
        self._process = None  # not before: whoever cancels us here ends it in our place


class Startable(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


async def start_all(parts: Iterable[Startable]) -> None:
    """All at once, all or none: the first failure stops the others, and is raised."""
    parts = list(parts)
    try:
        async with asyncio.TaskGroup() as starting:
            for part in parts:
                starting.create_task(part.start())
    except BaseException as error:
        await asyncio.gather(*(part.stop() for part in parts))
        raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error from None


# The child's side.


def take_stdout() -> int:
    """A descriptor for our one line. What libraries print joins the log: nobody reads the pipe after that line."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answer


def announce(answer: int, started: Started) -> None:
    os.write(answer, msgspec.json.encode(started) + b"\n")
    os.close(answer)


def outlive_parent() -> None:
    """Returns when our input has ended. For a thread: it blocks."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
