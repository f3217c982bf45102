"""A worker inside Triton, with Triton's module on paper: no server is needed to see what it answers to whom."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from batching.protocol import PROTOCOL, Deltas, Stats, Submit, frame, from_worker, messages_in
from engines.fake_tokens import fake_answer
from engines.hosting import SessionAction, Welcome
from engines.types import FinishReason, OutputDelta
from tests.fakes import eventually, make_request

FINAL = 1


class TritonModelException(Exception):
    pass


@dataclass(eq=False)
class Sender:
    frames: bytes = b""
    welcome: bytes = b""
    error: str = ""
    num_ends: int = 0
    is_gone: bool = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.num_ends, "nothing follows the end"
        if isinstance(response, str):
            self.error = response
        for name, data in response if isinstance(response, list) else ():
            setattr(self, name, getattr(self, name) + data)
        self.num_ends += flags == FINAL

    def is_cancelled(self) -> bool:
        return self.is_gone

    @property
    def deltas(self) -> list[OutputDelta]:
        messages = messages_in(self.frames, from_worker)
        return [delta for message in messages if isinstance(message, Deltas) for delta in message.deltas]

    @property
    def running(self) -> int:
        return [message for message in messages_in(self.frames, from_worker) if isinstance(message, Stats)][
            -1
        ].stats.running


@dataclass
class Model:
    """One model's process, and its gateways."""

    module: Any
    model: Any = None
    kept: list[Sender] = field(default_factory=list)

    def load(self, **parameters: str) -> None:
        strings = {name: {"string_value": text} for name, text in ({"engine": "fake"} | parameters).items()}
        config = json.dumps({"parameters": strings})
        self.model = self.module.TritonPythonModel()
        args = {"model_name": "m", "model_config": config, "model_repository": "/r/m", "model_version": "1"}
        self.model.initialize(args)

    def ask(self, action: int, session: int = 0, frames: bytes = b"") -> Sender:
        sender = Sender()
        tensors = {"action": np.array([action], np.uint8), "session": np.array([session], np.uint64)}
        if frames:
            tensors["frames"] = np.frombuffer(frames, np.uint8)
        self.model.execute([SimpleNamespace(tensors=tensors, get_response_sender=lambda: sender)])
        return sender

    async def answered(self, action: int, session: int = 0, frames: bytes = b"") -> Sender:
        sender = self.ask(action, session, frames)
        await eventually(lambda: sender.num_ends == 1)
        return sender

    async def opened(self, session: int) -> Sender:
        sender = self.ask(SessionAction.OPEN, session)
        await eventually(lambda: bool(sender.frames))
        return sender


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    def tensor_of(request: Any, name: str) -> Any:
        array = request.tensors.get(name)
        return None if array is None else SimpleNamespace(as_numpy=lambda: array)

    pb_utils: Any = ModuleType("triton_python_backend_utils")
    pb_utils.Tensor = lambda name, array: (name, array.tobytes())
    pb_utils.InferenceResponse = lambda output_tensors=(), error=None: error or list(output_tensors)
    pb_utils.TritonError = str
    pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    pb_utils.TritonModelException = TritonModelException
    pb_utils.get_input_tensor_by_name = tensor_of
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    monkeypatch.delitem(sys.modules, "batching.triton_model", raising=False)
    module = importlib.import_module("batching.triton_model")
    monkeypatch.setattr(module.logs, "configure", lambda *_, **__: None)
    monkeypatch.setattr(module, "LOOK_INTERVAL", 0.01)
    switch_interval = sys.getswitchinterval()
    made = Model(module)
    yield made
    if made.model is not None:
        made.model.finalize()
    sys.setswitchinterval(switch_interval)
    sys.modules.pop("batching.triton_model", None)


def submit(request_id: str, prompt: list[int], max_tokens: int) -> bytes:
    """Times as a relay tells them: in seconds from now."""
    return frame(Submit(make_request(request_id, prompt, max_tokens=max_tokens, arrival=0.0, deadline=60.0)))


async def test_what_it_is(host: Model) -> None:
    host.load(max_model_len="100", max_num_seqs="3")
    answer = await host.answered(SessionAction.ASK)
    welcome = msgspec.json.decode(answer.welcome, type=Welcome)
    assert (welcome.protocol, welcome.info.max_model_len, welcome.info.max_num_seqs) == (PROTOCOL, 100, 3)


async def test_requests_are_answered_in_their_own_session(host: Model) -> None:
    host.load()
    one, other = await host.opened(1), await host.opened(2)
    await host.answered(SessionAction.SAY, 1, submit("a", [1], 5) + submit("b", [2], 6))
    await host.answered(SessionAction.SAY, 2, submit("c", [3], 7))
    await eventually(lambda: len(one.deltas) >= 11 and len(other.deltas) >= 7)
    tokens = {
        name: [t for d in one.deltas + other.deltas if d.request_id == name for t in d.token_ids] for name in "abc"
    }
    assert tokens == {"a": fake_answer([1], 5), "b": fake_answer([2], 6), "c": fake_answer([3], 7)}
    assert {delta.request_id for delta in other.deltas} == {"c"}
    assert sum(delta.finish_reason is FinishReason.LENGTH for delta in one.deltas) == 2
    assert not one.num_ends


@pytest.mark.parametrize("way", ["close", "cancelled", "silent"])
async def test_a_session_that_ends_takes_its_requests_along(
    host: Model, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "silent":
        monkeypatch.setattr(host.module, "LEASE", 0.3)
    host.load(options='{"delay_ms": 5}')
    session = await host.opened(1)
    await host.answered(SessionAction.SAY, 1, submit("a", [1], 100_000))
    await eventually(lambda: bool(session.deltas))
    if way == "close":
        await host.answered(SessionAction.CLOSE, 1)
    session.is_gone = way == "cancelled"
    await eventually(lambda: session.num_ends == 1)
    assert not session.error
    assert (await host.opened(2)).running == 0


async def test_nothing_follows_the_end_of_a_session(host: Model, caplog: pytest.LogCaptureFixture) -> None:
    """Its requests' last deltas least of all."""
    host.load(options='{"delay_ms": 5}')
    session, other = await host.opened(1), await host.opened(2)
    await host.answered(SessionAction.SAY, 1, submit("a", [1], 100_000))
    await eventually(lambda: bool(session.deltas) and other.running == 1)
    await host.answered(SessionAction.CLOSE, 1)
    await eventually(lambda: other.running == 0)
    await host.answered(SessionAction.SAY, 2)
    assert session.num_ends == 1
    assert not [record for record in caplog.records if record.name == "penstock.triton_model"]


async def test_a_session_that_can_t_be_asked_is_ended_and_the_others_are_looked_after(host: Model) -> None:
    def broken() -> bool:
        raise RuntimeError("no such sender")

    host.load()
    strange, other = await host.opened(1), await host.opened(2)
    strange.is_cancelled = broken  # type: ignore[method-assign]
    await eventually(lambda: strange.num_ends == 1)
    other.is_gone = True
    await eventually(lambda: other.num_ends == 1)


async def test_who_says_that_it_is_there_stays(host: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.module, "LEASE", 0.3)
    host.load()
    session = await host.opened(1)
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        await host.answered(SessionAction.SAY, 1)
        await asyncio.sleep(0.02)
    assert not session.num_ends


@pytest.mark.parametrize(
    ("action", "session", "frames", "words"),
    [
        (SessionAction.SAY, 9, b"", "no such session"),
        (SessionAction.SAY, 1, b"\0\0\0\1\xc1", "penstock: "),
        (SessionAction.SAY, 1, b"\0", "penstock: "),
        (SessionAction.OPEN, 1, b"", "session 1 is open already"),
        (77, 1, b"", "action 77: unknown"),
    ],
)
async def test_what_makes_no_sense_is_refused_alone(
    host: Model, action: int, session: int, frames: bytes, words: str
) -> None:
    host.load()
    good = await host.opened(1)
    assert words in (await host.answered(action, session, frames)).error
    await host.answered(SessionAction.SAY, 1, submit("a", [1], 5))
    await eventually(lambda: len(good.deltas) >= 5)


async def test_a_failed_engine_ends_every_session_now_and_later(host: Model) -> None:
    host.load(options='{"fail_at_step": 4}')
    session = await host.opened(1)
    await host.answered(SessionAction.SAY, 1, submit("a", [1], 50))
    await eventually(lambda: session.num_ends == 1)
    assert "the engine has failed" in session.error
    for action in (SessionAction.ASK, SessionAction.OPEN, SessionAction.SAY):
        assert "the engine has failed" in (await host.answered(action, 2)).error


async def test_an_unload_ends_what_is_still_open(host: Model) -> None:
    host.load()
    session = await host.opened(1)
    await asyncio.to_thread(host.model.finalize)
    host.model = None
    assert (session.num_ends, session.error) == (1, "penstock: the model is unloaded")


def test_parameters_that_make_no_sense_stop_the_load(host: Model) -> None:
    with pytest.raises(TritonModelException, match="expected one of torch, onnx, fake"):
        host.load(engine="vllm")
    host.model = None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "model2vec"}, "embeds texts"),
        ({"architectures": ["BertModel"]}, "embeds texts"),
        ({"architectures": ["BertForSequenceClassification"]}, "scores pairs of texts"),
    ],
)
@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_model_that_makes_vectors_is_not_served(
    host: Model, tmp_path: Path, config: dict[str, object], words: str, engine: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TritonModelException, match=f"{words}; inside a Triton expected one that generates"):
        host.load(engine=engine, path=str(tmp_path))
    host.model = None
