"""Our side of the process in which grammars are tried."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys

import msgspec

from engines.grammars.zygote import LENGTH, Trial, Verdict
from engines.types import Grammar

MAX_WAITING = 64  # grammars; of 0.8 s at most each, two at a time
ANSWER_TIMEOUT = 10.0  # seconds, the first one's wait for the vocabulary included
UNAVAILABLE = "grammars can't be compiled at the moment"


class Busy(Exception):
    """No verdict: too many wait, or the process is gone. It may work later."""


class Trials:
    """Starts the process with the first grammar, and again after its death. Belongs to one event loop."""

    def __init__(self, vocabulary_path: str) -> None:
        self._vocabulary_path = vocabulary_path
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._verdicts: dict[int, asyncio.Future[Verdict]] = {}
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()

    async def close(self) -> None:
        """It ends with its input; a worker that ends closes that too."""
        if self._process is not None and self._reading is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await self._reading

    async def verdict(self, grammar: Grammar) -> Verdict:
        """Raises Busy."""
        if len(self._verdicts) >= MAX_WAITING:
            raise Busy("too many grammars are waiting to be compiled")
        number = next(self._numbers)
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._verdicts[number] = future
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._send(Trial(number, grammar))
                return await future
        except (TimeoutError, OSError) as error:
            raise Busy(UNAVAILABLE) from error
        finally:
            del self._verdicts[number]

    async def _send(self, trial: Trial) -> None:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        payload = msgspec.msgpack.encode(trial)
        self._process.stdin.write(LENGTH.pack(len(payload)) + payload)

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
                future = self._verdicts.get(verdict.number)
                if future is not None and not future.done():
                    future.set_result(verdict)
        await process.wait()
        for future in self._verdicts.values():
            if not future.done():
                future.set_exception(Busy(UNAVAILABLE))
