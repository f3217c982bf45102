"""llama.cpp's own best case, without a server: sequences that join and leave one batch. Needs llama_cpp.

    python llama.py MODEL.gguf THREADS

Reads a JSON object a line, answers with one: see `answer`. Timed tokens are not sampled but chosen beforehand, as in
llama-batched-bench, so no server of the same library can be faster.
"""

import ctypes
import heapq
import json
import sys
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import llama_cpp as api

FIRST_TOKEN, NUM_TOKENS = 1000, 20_000  # an ordinary part of the vocabulary
CHUNK = 512  # tokens of prompts in a batch, llama.cpp's own default
SLOTS, LENGTH = 16, 384  # sequences, and what each holds if all are as long


@dataclass(slots=True)
class Request:
    """`times`: when each of its tokens was there, `done` prompt tokens of which are computed."""

    prompt: int
    output: int
    slot: int = -1
    start: float = 0.0
    done: int = 0
    times: list[float] = field(default_factory=list)


class Session:
    """The one context for all that is asked, as a server would have it."""

    def __init__(self, model: Any, threads: int) -> None:
        params = api.llama_context_default_params()
        params.n_ctx = SLOTS * LENGTH
        params.n_batch = params.n_ubatch = CHUNK
        params.n_seq_max = SLOTS
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True  # one sequence may be longer than others
        self._context = api.llama_init_from_model(model, params)
        if not self._context:
            raise SystemExit("llama.cpp made no context")
        self._batch = api.llama_batch_init(CHUNK, 0, 1)
        self._size = 0
        self.vocabulary = api.llama_model_get_vocab(model)

    def add(self, token: int, position: int, slot: int, *, wanted: bool) -> None:
        """A row of the next batch; `wanted`: its logits are."""
        batch, row = self._batch, self._size
        batch.token[row], batch.pos[row] = token, position
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, slot
        batch.logits[row] = wanted
        self._size += 1

    def run(self) -> None:
        """Returns when the logits are there."""
        self._batch.n_tokens, self._size = self._size, 0
        if api.llama_decode(self._context, self._batch) != 0:
            raise SystemExit("llama_decode failed")
        api.llama_synchronize(self._context)

    def forget(self, slot: int) -> None:
        api.llama_memory_seq_rm(api.llama_get_memory(self._context), slot, -1, -1)

    def best(self) -> int:
        """The most likely token behind the batch's last row."""
        size = api.llama_vocab_n_tokens(self.vocabulary)
        pointer = api.llama_get_logits_ith(self._context, -1)
        logits = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * size)).contents
        return max(range(size), key=logits.__getitem__)


def mix(session: Session, slots: int, sizes: list[list[int]]) -> list[Request]:
    """A closed loop of `slots` users. Whoever runs gets a token a batch, prompts fill what is left of it."""
    requests = [Request(prompt, output) for prompt, output in sizes]
    waiting, running, free = list(requests), list[Request](), list(range(slots))
    while waiting or running:
        while waiting and free:
            request = waiting.pop(0)
            request.slot, request.start = heapq.heappop(free), perf_counter()
            running.append(request)
        fed = _fill(session, running)
        session.run()
        now = perf_counter()
        for request in fed:
            request.times.append(now)
        for request in [request for request in running if len(request.times) == request.output]:
            running.remove(request)
            heapq.heappush(free, request.slot)
            session.forget(request.slot)
    return requests


def _fill(session: Session, running: list[Request]) -> list[Request]:
    """Those that will have a token more."""
    fed = [request for request in running if request.times]
    for request in fed:
        session.add(_token(request.slot), request.prompt + len(request.times) - 1, request.slot, wanted=True)
    room = CHUNK - len(fed)
    for request in running:
        count = min(room, request.prompt - request.done)
        for position in range(request.done, request.done + count):
            last = position == request.prompt - 1
            session.add(_token(request.slot + position), position, request.slot, wanted=last)
        if count and request.done + count == request.prompt:
            fed.append(request)
        request.done, room = request.done + count, room - count
    return fed


def _token(number: int) -> int:
    return FIRST_TOKEN + number * 7919 % NUM_TOKENS


def greedy(session: Session, prompt: list[int], tokens: int) -> list[int]:
    found: list[int] = []
    for position, token in enumerate(prompt):
        session.add(token, position, 0, wanted=position == len(prompt) - 1)
    while len(found) < tokens:
        session.run()
        found.append(session.best())
        if len(found) < tokens:
            session.add(found[-1], len(prompt) + len(found) - 1, 0, wanted=True)
    session.forget(0)
    return found


def tokenize(session: Session, text: str) -> list[int]:
    data = text.encode()
    room = (api.llama_token * (len(data) + 8))()
    count = api.llama_tokenize(session.vocabulary, data, len(data), room, len(room), True, True)
    return list(room[:count])


def answer(session: Session, asked: dict[str, Any]) -> dict[str, Any]:
    """`{"mix": [slots, [[prompt, output], ...]]}`: start and times of each. `{"greedy": [text, tokens]}`: the ids of
    the prompt and of what follows. `{}`: what the library says of itself."""
    if "mix" in asked:
        return {"requests": [[request.start, request.times] for request in mix(session, *asked["mix"])]}
    if "greedy" in asked:
        text, tokens = asked["greedy"]
        prompt = tokenize(session, text)
        return {"prompt": prompt, "tokens": greedy(session, prompt, tokens)}
    return {"system": api.llama_print_system_info().decode().strip()}


@api.llama_log_callback  # type: ignore[untyped-decorator]
def _quiet(level: int, text: bytes, data: Any) -> None:
    pass


def main(path: str, threads: int) -> None:
    api.llama_log_set(_quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp can't load {path}")
    session = Session(model, threads)
    mix(session, 1, [[CHUNK, 2]])  # its memory is touched for the first time
    for line in sys.stdin:
        print(json.dumps(answer(session, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
