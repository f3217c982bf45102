"""The thread that sends a hosted model's responses, with Triton's module on paper."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from batching.triton_responses import Responses

FINAL = 1


@dataclass(eq=False)
class Sender:
    """`gate` holds back the first response."""

    gate: threading.Event | None = None
    sent: list[tuple[Any, int]] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    is_gone: bool = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        if self.is_gone:
            raise RuntimeError("nobody listens")
        self.entered.set()
        if self.gate is not None:
            self.gate.wait(30)
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        return self.is_gone


def make() -> Responses:
    pb_utils = SimpleNamespace(
        Tensor=lambda name, array: (name, array.tobytes()),
        InferenceResponse=lambda output_tensors=(), error=None: error or list(output_tensors),
        TritonError=lambda message: message,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )
    responses = Responses(pb_utils)
    responses.start()
    return responses


def test_what_comes_while_a_response_is_sent_goes_out_in_one() -> None:
    responses, sender = make(), Sender(threading.Event())
    responses.put(sender, b"a")
    assert sender.entered.wait(30)
    for data in (b"b", b"c", b"d"):
        responses.put(sender, data)
    sender.gate.set()
    responses.stop()
    assert sender.sent == [([("frames", b"a")], 0), ([("frames", b"bcd")], 0)]


def test_the_last_response_comes_after_everything_else() -> None:
    responses, good, bad = make(), Sender(), Sender()
    responses.put(good, b"a")
    responses.finish(good)
    responses.finish(bad, "why")
    responses.stop()
    assert good.sent == [([("frames", b"a")], 0), (None, FINAL)]
    assert bad.sent == [("why", FINAL)]


def test_one_that_is_gone_takes_nobody_along() -> None:
    responses, gone, there = make(), Sender(is_gone=True), Sender()
    responses.put(gone, b"a")
    responses.put(there, b"b")
    assert responses.is_cancelled(gone).result(30)
    assert not responses.is_cancelled(there).result(30)
    responses.stop()
    assert there.sent == [([("frames", b"b")], 0)]


def test_who_can_t_be_asked_leaves_nobody_waiting() -> None:
    responses = make()
    with pytest.raises(AttributeError):
        responses.is_cancelled(object()).result(5)
    responses.stop()
