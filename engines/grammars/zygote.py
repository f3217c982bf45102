"""The process in which grammars are tried: one fork a grammar, bounded in time and memory, that can be killed.

It has read the vocabulary once, so that a fork costs about a millisecond. It reads frames from its standard input and
answers on its standard output, each 4 bytes of length, big endian, and one message of msgpack; it ends with its input.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from engines import vocabulary
from engines.constraint import GrammarError
from engines.grammars.compiler import check, compile_grammar, open_tokenizer
from engines.types import Grammar

TIME_LIMIT = 0.8  # seconds of one grammar
MEMORY_LIMIT = 128 * 2**20  # bytes that it may take besides the vocabulary
MAX_CHILDREN = 2
LENGTH = struct.Struct(">I")
TOO_LONG = f"it takes more than {TIME_LIMIT:g} s to compile"
TOO_LARGE = "it needs too much memory to compile"


class Trial(msgspec.Struct, array_like=True):
    number: int
    grammar: Grammar


class Verdict(msgspec.Struct, array_like=True):
    """`problem` is empty for a grammar that can be used, which takes about `cost` bytes.

    `is_measured`: the problem is what the trial took, which may be less on another day.
    """

    number: int
    problem: str = ""
    cost: int = 0
    is_measured: bool = False


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    deadline: float


class Zygote:
    def __init__(self, try_grammar: Callable[[Grammar], int]) -> None:
        self._try = try_grammar
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}  # by the descriptor of its answer
        self._waiting: deque[Trial] = deque()
        self._input = b""

    def serve(self) -> None:
        self._selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select(self._patience()):
                if key.fd == 0 and not self._read():
                    return self._end()
                if key.fd in self._children:
                    self._finish(key.fd)
            self._kill_late()
            while self._waiting and len(self._children) < MAX_CHILDREN:
                self._fork(self._waiting.popleft())

    def _patience(self) -> float | None:
        deadlines = [child.deadline for child in self._children.values()]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _read(self) -> bool:
        data = os.read(0, 1 << 16)
        self._input += data
        while len(self._input) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._input)[0]
            if len(self._input) < end:
                break
            self._waiting.append(msgspec.msgpack.decode(self._input[LENGTH.size : end], type=Trial))
            self._input = self._input[end:]
        return bool(data)

    def _fork(self, trial: Trial) -> None:
        answer, ours = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(answer)
            _live_and_die(trial.grammar, ours, self._try)
        os.close(ours)
        self._children[answer] = _Child(trial.number, pid, time.monotonic() + TIME_LIMIT)
        self._selector.register(answer, selectors.EVENT_READ)

    def _finish(self, descriptor: int, problem: str = "") -> None:
        """It has answered, or died, or is killed for `problem`."""
        self._selector.unregister(descriptor)
        child = self._children.pop(descriptor)
        if problem:
            os.kill(child.pid, signal.SIGKILL)
        data = b"" if problem else os.read(descriptor, 1 << 16)  # a verdict fits a pipe: it is there at once
        os.close(descriptor)
        os.waitpid(child.pid, 0)
        verdict = msgspec.msgpack.decode(data, type=Verdict) if data else _took_too_much(problem or TOO_LARGE)
        verdict.number = child.number
        _write(1, verdict)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for descriptor in [d for d, child in self._children.items() if child.deadline <= now]:
            self._finish(descriptor, TOO_LONG)

    def _end(self) -> None:
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)


def _live_and_die(grammar: Grammar, answer: int, try_grammar: Callable[[Grammar], int]) -> None:
    """A child's whole life. What the library says of a failed allocation is not for the log."""
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        limit = _address_space() + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))  # should nobody be left to kill it
        before = _resident()
        try:
            cost = try_grammar(grammar)
            verdict = Verdict(0, cost=cost + max(0, _resident() - before))
        except GrammarError as error:
            verdict = Verdict(0, str(error))
        os.write(answer, msgspec.msgpack.encode(verdict))
    finally:
        os._exit(0)


def _address_space() -> int:
    return _statm(0)


def _resident() -> int:
    return _statm(1)


def _statm(field: int) -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[field]) * resource.getpagesize()


def _took_too_much(problem: str) -> Verdict:
    return Verdict(0, problem, is_measured=True)


def _write(descriptor: int, verdict: Verdict) -> None:
    payload = msgspec.msgpack.encode(verdict)
    os.write(descriptor, LENGTH.pack(len(payload)) + payload)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tokenizer = open_tokenizer(vocabulary.read(sys.argv[1]))

    def try_grammar(grammar: Grammar) -> int:
        matcher = compile_grammar(tokenizer, grammar)
        matcher.compute_bitmask()
        check(matcher)
        return len(grammar.text)

    Zygote(try_grammar).serve()


if __name__ == "__main__":
    main()
