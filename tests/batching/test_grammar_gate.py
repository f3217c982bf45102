"""Requests with a grammar wait for it before the queue."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from batching.grammar_gate import GrammarGate
from batching.stats import WorkerStats
from engines.types import ErrorCode, FinishReason, GenerationRequest, Grammar, GrammarKind, OutputDelta, RequestError
from tests.fakes import make_request

GRAMMAR = Grammar(GrammarKind.LARK, 'start: "a"')


class Below:
    """A batcher that only remembers."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def add(self, request: GenerationRequest) -> None:
        self.calls.append(f"add {request.request_id}")

    def abort(self, request_id: str) -> None:
        self.calls.append(f"abort {request_id}")

    def snapshot(self) -> WorkerStats:
        return WorkerStats(waiting=2)

    async def run(self) -> None:
        self.calls.append("run")


class Compiler:
    def __init__(self) -> None:
        self.verdict: asyncio.Future[RequestError | None] = asyncio.get_running_loop().create_future()
        self.ready = False
        self.was_used = False

    def is_ready(self, grammar: Grammar) -> bool:
        return self.ready

    async def prepare(self, grammar: Grammar, account: str = "", *, was_used: bool = False) -> RequestError | None:
        self.was_used = was_used
        return await asyncio.shield(self.verdict)


def constrained(request_id: str) -> GenerationRequest:
    request = make_request(request_id)
    return replace(request, sampling=replace(request.sampling, grammar=GRAMMAR))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_request_goes_on_when_its_grammar_is_compiled() -> None:
    below, compiler, delivered = Below(), Compiler(), list[OutputDelta]()
    gate = GrammarGate(below, compiler, delivered.extend)
    gate.add(constrained("a"))
    gate.add(make_request("b"))
    await settle()
    assert below.calls == ["add b"]
    assert gate.snapshot().waiting == 3
    compiler.verdict.set_result(None)
    await settle()
    assert below.calls == ["add b", "add a"]
    assert gate.snapshot().waiting == 2
    assert delivered == []


async def test_a_compiled_grammar_is_not_waited_for() -> None:
    below, compiler = Below(), Compiler()
    compiler.ready = True
    GrammarGate(below, compiler, lambda _: None).add(constrained("a"))
    assert below.calls == ["add a"]


async def test_the_grammar_of_an_answer_that_was_begun_elsewhere_is_not_tried_again() -> None:
    below, compiler = Below(), Compiler()
    gate = GrammarGate(below, compiler, lambda _: None)
    gate.add(constrained("a"))
    await settle()
    assert not compiler.was_used
    gate.add(replace(constrained("b"), output_token_ids=[1]))
    await settle()
    assert compiler.was_used


async def test_a_grammar_that_is_refused_ends_its_request_alone() -> None:
    below, compiler, delivered = Below(), Compiler(), list[OutputDelta]()
    gate = GrammarGate(below, compiler, delivered.extend)
    gate.add(constrained("a"))
    error = RequestError(ErrorCode.INVALID_GRAMMAR, "no")
    compiler.verdict.set_result(error)
    await settle()
    assert below.calls == []
    assert delivered == [OutputDelta("a", finish_reason=FinishReason.ERROR, error=error)]


async def test_a_grammar_that_fails_to_be_prepared_ends_its_request() -> None:
    below, compiler, delivered = Below(), Compiler(), list[OutputDelta]()
    gate = GrammarGate(below, compiler, delivered.extend)
    gate.add(constrained("a"))
    compiler.verdict.set_exception(OSError("no vocabulary"))
    await settle()
    (end,) = delivered
    assert (end.request_id, end.finish_reason) == ("a", FinishReason.ERROR)
    assert end.error is not None
    assert end.error.code is ErrorCode.ENGINE_FAILED
    assert gate.snapshot().waiting == 2
    assert below.calls == []


async def test_an_abort_meets_a_request_wherever_it_is() -> None:
    below, compiler, delivered = Below(), Compiler(), list[OutputDelta]()
    gate = GrammarGate(below, compiler, delivered.extend)
    gate.add(constrained("a"))
    gate.abort("a")
    gate.abort("b")
    compiler.verdict.set_result(None)
    await settle()
    assert below.calls == ["abort b"]
    assert delivered == [OutputDelta("a", finish_reason=FinishReason.ABORT)]


async def test_an_engine_without_grammars_refuses_for_itself() -> None:
    below = Below()
    GrammarGate(below, None, lambda _: None).add(constrained("a"))
    assert below.calls == ["add a"]
