"""The thread in which a model inside Triton sends all its responses, and what waits there for it."""

from __future__ import annotations

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

log = logging.getLogger("penstock.triton_model")


class Responses:
    """Sends in the order of the calls. What waits for one sender goes out in one response: a model that is faster than
    its responses sends fewer of them. `pb_utils` is Triton's module."""

    def __init__(self, pb_utils: Any) -> None:
        self._pb = pb_utils
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._unsent: defaultdict[Any, list[tuple[str, bytes]]] = defaultdict(list)  # the thread's alone
        self._thread = threading.Thread(target=self._run, name="responses", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """After everything that was put before."""
        self._work.put(None)
        self._thread.join()

    def put(self, sender: Any, data: bytes, tensor: str = "frames") -> None:
        """Bytes for this tensor of the sender's next response."""
        self._work.put(lambda: self._unsent[sender].append((tensor, data)))

    def finish(self, sender: Any, error: str = "") -> None:
        """The sender's last response: nothing may be sent by it afterwards."""
        self._work.put(lambda: self._finish(sender, error))

    def is_cancelled(self, sender: Any) -> Future[bool]:
        """Whether who asked has gone, or what it raises to ask."""
        answer: Future[bool] = Future()
        self._work.put(partial(_answer, answer, sender))
        return answer

    def _run(self) -> None:
        is_running = True
        while is_running:
            is_running = self._take(self._work.get())
            while is_running and not self._work.empty():
                is_running = self._take(self._work.get())
            for sender in list(self._unsent):
                self._do(partial(self._send, sender))

    def _take(self, work: Callable[[], object] | None) -> bool:
        """False after the last one."""
        if work is not None:
            self._do(work)
        return work is not None

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:  # whoever it was for has gone: nobody else is to suffer
            log.exception("a response can't be sent")

    def _send(self, sender: Any) -> None:
        if parts := self._unsent.pop(sender, None):
            joined: defaultdict[str, bytes] = defaultdict(bytes)
            for tensor, data in parts:
                joined[tensor] += data
            tensors = [self._pb.Tensor(name, np.frombuffer(data, np.uint8)) for name, data in joined.items()]
            sender.send(self._pb.InferenceResponse(output_tensors=tensors))

    def _finish(self, sender: Any, error: str) -> None:
        self._send(sender)
        response = self._pb.InferenceResponse(error=self._pb.TritonError(error)) if error else None
        final = self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        sender.send(response, flags=final) if response else sender.send(flags=final)


def _answer(answer: Future[bool], sender: Any) -> None:
    if not answer.set_running_or_notify_cancel():
        return  # the loop that awaited it has ended
    try:
        answer.set_result(bool(sender.is_cancelled()))
    except Exception as error:  # whoever awaits it would do so for ever
        answer.set_exception(error)
