"""A session with a worker inside Triton, its gRPC stream on paper: what fails here, not over there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engines.hosting import HOSTED_TENSORS, Welcome
from engines.triton.client import TritonClient
from engines.triton.hosted import HostedEngine
from engines.triton.model import TritonModel
from engines.triton.tensors import TensorSpec
from engines.types import EngineConfig
from tests.fakes import make_info


@dataclass(eq=False)
class PaperCall:
    """Nothing comes back by it, and its first `num_writes` requests go out."""

    num_writes: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, request: Any) -> None:
        if not self.num_writes:
            raise ValueError("a message that can't be serialized")
        self.num_writes -= 1

    async def read(self) -> Any:
        await self.ended.wait()
        raise asyncio.CancelledError  # as grpc.aio tells a call that was cancelled here

    def done(self) -> bool:
        return self.ended.is_set()

    def cancel(self) -> None:
        self.ended.set()


def build(monkeypatch: pytest.MonkeyPatch, call: PaperCall) -> HostedEngine:
    welcome = msgspec.json.encode(Welcome("x", make_info()))
    monkeypatch.setattr(TritonClient, "ask", lambda *_: welcome)
    specs = {name: TensorSpec(name, kind, (-1,)) for name, kind in HOSTED_TENSORS.items()}
    model = TritonModel("here", specs, {}, decoupled=True, batch_size=0, instances=1, parameters={})
    engine = HostedEngine(EngineConfig("triton", url="here:1", remote_model="m", name="m@1"), model)
    engine._client._stub = SimpleNamespace(ModelStreamInfer=lambda: call)
    return engine


async def test_what_can_t_be_said_ends_the_session(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else its requests would wait until the other side takes us for dead."""
    call = PaperCall(num_writes=1)
    engine = build(monkeypatch, call)
    async with asyncio.timeout(5):
        assert [frames async for frames in engine.session()] == []
    assert not engine.is_ready, "it is looked at"
    assert "can't be serialized" in caplog.text
