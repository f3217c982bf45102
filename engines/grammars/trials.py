"""Our side of the process in which grammars are tried."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys

import msgspec

from engines.grammars.turns import Turns
from engines.grammars.zygote import LENGTH, MAX_CHILDREN, Trial, Verdict
from engines.types import Grammar

MAX_WAITING = 64  # grammars of one account, for a place; a usual one is tried in milliseconds
PATIENCE = 10.0  # seconds to wait for a place
ANSWER_TIMEOUT = 10.0  # seconds from then on, the first one's wait for the vocabulary included
CROWDED = "too many grammars are waiting to be compiled"
UNAVAILABLE = "grammars can't be compiled at the moment"


class Busy(Exception):
    """No verdict: too many wait, or the process is gone. It may work later."""


class Trials:
    """Starts the process with the first grammar, and again after its death. Belongs to one event loop.

    They wait on this side, accounts by turns: the process has no more than it can try at once, so that one nobody
    waits for any more is not tried. One that was sent holds its place until it is answered, whoever has left.
    """

    def __init__(self, vocabulary_path: str) -> None:
        self._vocabulary_path = vocabulary_path
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._verdicts: dict[int, asyncio.Future[Verdict]] = {}
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()
        self._places = Turns(MAX_CHILDREN)

    async def close(self) -> None:
        """It ends with its input; a worker that ends closes that too."""
        if self._process is not None and self._reading is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await self._reading

    async def verdict(self, grammar: Grammar, account: str = "") -> Verdict:
        """Raises Busy."""
        await self._take_place(account)
        answer = await self._send(grammar)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await asyncio.shield(answer)
        except TimeoutError as error:
            self._kill()  # it is stuck: its own limit is shorter by far
            raise Busy(UNAVAILABLE) from error

    async def _take_place(self, account: str) -> None:
        if self._places.num_waiting(account) >= MAX_WAITING:
            raise Busy(CROWDED)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._places.take(account)
        except TimeoutError as error:
            raise Busy(CROWDED) from error

    async def _send(self, grammar: Grammar) -> asyncio.Future[Verdict]:
        """What will be the verdict. It has the place that was taken for it, and gives that back."""
        try:
            await self._be_started()
        except BaseException:
            self._places.give_back()
            raise
        assert self._process is not None
        assert self._process.stdin is not None
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._give_back_place)
        number = next(self._numbers)
        self._verdicts[number] = future
        payload = msgspec.msgpack.encode(Trial(number, grammar))
        self._process.stdin.write(LENGTH.pack(len(payload)) + payload)
        return future

    def _give_back_place(self, answer: asyncio.Future[Verdict]) -> None:
        self._places.give_back()
        answer.exception()  # taken, should nobody wait for it any more

    async def _be_started(self) -> None:
        """Raises Busy."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                try:
                    await self._start()
                except OSError as error:
                    raise Busy(UNAVAILABLE) from error

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "engines.grammars.zygote",
            self._vocabulary_path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
                verdict = msgspec.msgpack.decode(await process.stdout.readexactly(length), type=Verdict)
                if (future := self._verdicts.pop(verdict.number, None)) is not None:
                    future.set_result(verdict)
        await process.wait()
        while self._verdicts:
            self._verdicts.popitem()[1].set_exception(Busy(UNAVAILABLE))
