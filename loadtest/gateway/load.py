"""What is asked of every subject: whole answers at a fixed rate, and streams side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.gateway.processes import cpu_s
from loadtest.gateway.raw_http import RawAnswer, RawConnection, post
from loadtest.gateway.subjects import AT_ONCE, PACED, Subject
from loadtest.measure import percentile
from loadtest.records import BenchError

PATH = "/v1/chat/completions"
PROMPT = "Say something about the weather in the mountains, and about the rivers that come from them. "
MAX_CONNECTIONS = 64  # requests that are due while all are busy wait here
WARMUP_REQUESTS, WARMUP_TOKENS = 50, 20


@dataclass(slots=True, frozen=True)
class Load:
    rate: float  # whole answers a second,
    requests: int  # so many in all,
    answer_tokens: int  # of this length
    streams: int
    stream_tokens: int


@dataclass(slots=True, frozen=True)
class Requests:
    """A part with whole answers. Times in seconds; `p50` and `p99` from when a request was due to its answer's end."""

    per_s: float
    cpu: float  # a request
    p50: float
    p99: float
    answer_bytes: float


@dataclass(slots=True, frozen=True)
class Streams:
    """A part with streams. `events` of tokens a token: fewer than 1 where tokens share them."""

    tokens_per_s: float
    cpu: float  # a token
    events: float
    token_bytes: float


@dataclass(slots=True, frozen=True)
class Part:
    requests: Requests
    streams: Streams


async def measure(subject: Subject, load: Load) -> Part:
    """Raises BenchError for an answer that is not what was asked for."""
    connections = [await RawConnection.connect("127.0.0.1", subject.port) for _ in range(MAX_CONNECTIONS)]
    try:
        await _whole_answers(subject, load, connections, WARMUP_REQUESTS)
        requests = await _whole_answers(subject, load, connections, load.requests)
    finally:
        for connection in connections:
            connection.close()
    await _streams(subject, load, WARMUP_TOKENS)
    return Part(requests, await _streams(subject, load, load.stream_tokens))


async def _whole_answers(subject: Subject, load: Load, connections: Sequence[RawConnection], count: int) -> Requests:
    free: asyncio.Queue[RawConnection] = asyncio.Queue()
    for connection in connections:
        free.put_nowait(connection)
    request = _request(subject, AT_ONCE, load.answer_tokens)
    took: list[float] = []

    async def ask() -> RawAnswer:
        due = time.perf_counter()
        connection = await free.get()
        answer = await connection.ask(request)
        took.append(time.perf_counter() - due)
        free.put_nowait(connection)
        return answer

    started, before = time.perf_counter(), cpu_s(subject.pid)
    async with asyncio.TaskGroup() as tasks:
        asked = []
        for number in range(count):
            await asyncio.sleep(started + number / load.rate - time.perf_counter())
            asked.append(tasks.create_task(ask()))
    elapsed, cpu = time.perf_counter() - started, cpu_s(subject.pid) - before
    answers = [task.result() for task in asked]
    for answer in answers:
        _check(subject, answer.status == 200 and len(_text_of(answer)) == load.answer_tokens, answer)
    took.sort()
    size = sum(len(answer.body) for answer in answers) / count
    return Requests(count / elapsed, cpu / count, percentile(took, 50), percentile(took, 99), size)


async def _streams(subject: Subject, load: Load, num_tokens: int) -> Streams:
    """Connections of their own: what a server does with a new one is part of a stream."""
    connections = [await RawConnection.connect("127.0.0.1", subject.port) for _ in range(load.streams)]
    request = _request(subject, PACED, num_tokens, stream=True)
    started, before = time.perf_counter(), cpu_s(subject.pid)
    answers = await asyncio.gather(*(connection.ask(request) for connection in connections))
    elapsed, cpu = time.perf_counter() - started, cpu_s(subject.pid) - before
    for connection in connections:
        connection.close()
    texts = [_texts_of(answer) for answer in answers]
    for answer, pieces in zip(answers, texts, strict=True):
        _check(subject, answer.status == 200 and sum(map(len, pieces)) == num_tokens, answer)
    total = load.streams * num_tokens
    size = sum(len(answer.body) for answer in answers) / total
    return Streams(total / elapsed, cpu / total, sum(map(len, texts)) / total, size)


def _request(subject: Subject, model: str, max_tokens: int, *, stream: bool = False) -> bytes:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": model, "messages": messages, "max_tokens": max_tokens, "stream": stream}
    return post(PATH, f"127.0.0.1:{subject.port}", subject.key, body)


def _text_of(answer: RawAnswer) -> str:
    text: str = answer.json["choices"][0]["message"]["content"]
    return text


def _texts_of(answer: RawAnswer) -> list[str]:
    """Of every event that has some; a token is a character."""
    choices = [choice for event in answer.events for choice in event["choices"]]
    return [text for choice in choices if (text := choice["delta"].get("content"))]


def _check(subject: Subject, is_right: bool, answer: RawAnswer) -> None:
    if not is_right:
        raise BenchError(f"{subject.name} answered HTTP {answer.status}: {answer.content[-500:]!r}")
