"""A TCP proxy before a server, which can lose replies, go silent, trickle, or cut its connections."""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum

TRICKLES_A_SECOND = 10


class Fault(Enum):
    NONE = "none"
    LOSE_REPLY = "the next reply is lost: its connection is cut in place of it"
    BLACKHOLE = "takes bytes and connections, passes nothing on"
    REFUSE = "cuts every connection at once"


class ChaosProxy:
    """Set `fault`; LOSE_REPLY is for one reply and then NONE again. `delay` (s) is put before each reply.
    `bytes_a_second`: how fast a connection's bytes pass, in each direction; 0: as they come."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.fault = Fault.NONE
        self.delay = 0.0
        self.bytes_a_second = 0
        self.port = 0
        self.num_replies = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Every connection that is open now."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.fault is not Fault.REFUSE:
                await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        pumps = [
            asyncio.create_task(self._pump(reader, target_writer, is_reply=False)),
            asyncio.create_task(self._pump(target_reader, writer, is_reply=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            target_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool) -> None:
        while data := await reader.read(self.bytes_a_second // TRICKLES_A_SECOND or 65536):
            await asyncio.sleep(len(data) / self.bytes_a_second if self.bytes_a_second else 0)
            while self.fault is Fault.BLACKHOLE:
                await asyncio.sleep(0.01)
            if self.fault is Fault.REFUSE:
                return
            if is_reply:
                self.num_replies += 1
                if self.fault is Fault.LOSE_REPLY:
                    self.fault = Fault.NONE
                    return
                await asyncio.sleep(self.delay)
            writer.write(data)
            with contextlib.suppress(OSError):
                await writer.drain()
