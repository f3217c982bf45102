"""Trials of grammars: which of them run, whose end is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from engines.grammars import store as stores
from engines.grammars import trials
from engines.grammars.store import GrammarStore
from engines.grammars.trials import MAX_WAITING, Busy, Trials
from engines.grammars.turns import Turns
from engines.grammars.zygote import LENGTH, MAX_CHILDREN, TOO_LONG, Trial, Verdict
from engines.types import ErrorCode, Grammar, GrammarKind


class Process:
    """The process that tries grammars, as the test wants it to. `tried` are those it was sent, in that order."""

    def __init__(self) -> None:
        self.stdin = self
        self.stdout = asyncio.StreamReader()
        self.returncode: int | None = None
        self.tried: list[Trial] = []

    def write(self, frame: bytes) -> None:
        self.tried.append(msgspec.msgpack.decode(frame[LENGTH.size :], type=Trial))

    def answer(self, index: int, verdict: Verdict | None = None) -> None:
        payload = msgspec.msgpack.encode(
            msgspec.structs.replace(verdict or Verdict(0), number=self.tried[index].number)
        )
        self.stdout.feed_data(LENGTH.pack(len(payload)) + payload)

    def kill(self) -> None:
        self.returncode = -9
        self.stdout.feed_eof()

    async def wait(self) -> None:
        pass


class Faked(Trials):
    def __init__(self) -> None:
        super().__init__("")
        self.processes: list[Process] = []

    async def _start(self) -> None:
        self.processes.append(Process())
        self._process = self.processes[-1]  # type: ignore[assignment]
        self._reading = asyncio.create_task(self._read(self._process))  # type: ignore[arg-type]

    @property
    def tried(self) -> list[str]:
        return [trial.grammar.text for process in self.processes for trial in process.tried]


class Known(GrammarStore):
    """Its trials answer at once with what the test has put there; there is nothing to compile with."""

    def __init__(self, verdict: Callable[[Grammar], Verdict]) -> None:
        super().__init__("")
        self.num_trials = 0
        self._say = verdict
        self._trials.verdict = self._verdict  # type: ignore[method-assign]

    async def _verdict(self, grammar: Grammar, account: str = "") -> Verdict:
        self.num_trials += 1
        return self._say(grammar)

    def _open_tokenizer(self) -> None:  # type: ignore[override]
        pass

    def _compile(self, grammar: Grammar, cost: int) -> None:  # type: ignore[override]
        self._compiled[grammar] = (None, cost)  # type: ignore[assignment]


def grammar(name: str) -> Grammar:
    return Grammar(GrammarKind.LARK, name)


def begin(faked: Faked, *names: str, account: str = "") -> list[asyncio.Task[Verdict]]:
    return [asyncio.create_task(faked.verdict(grammar(name), account)) for name in names]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


RUNNING = [f"running {i}" for i in range(MAX_CHILDREN)]


async def test_a_grammar_that_nobody_waits_for_any_more_is_not_tried() -> None:
    faked = Faked()
    running = begin(faked, *RUNNING)
    await settle()
    left = begin(faked, "a", "b", "c")
    await settle()
    for task in left:
        task.cancel()
    (stays,) = begin(faked, "d")
    await settle()
    assert faked.tried == RUNNING
    faked.processes[0].answer(0, Verdict(0, cost=7))
    await settle()
    assert (await running[0]).cost == 7
    assert faked.tried == [*RUNNING, "d"]
    faked.processes[0].answer(2, Verdict(0, cost=9))
    assert (await stays).cost == 9


async def test_an_account_with_many_grammars_does_not_keep_another_from_its_turn() -> None:
    faked = Faked()
    many = [f"many {i}" for i in range(MAX_WAITING + MAX_CHILDREN)]
    begin(faked, *many, account="a")
    await settle()
    with pytest.raises(Busy, match="too many"):
        await faked.verdict(grammar("one more"), "a")
    begin(faked, "b0", "b1", account="b")
    await settle()
    for index in range(4):
        faked.processes[0].answer(index)
        await settle()
    assert faked.tried[MAX_CHILDREN:] == ["many 2", "b0", "many 3", "b1"]


async def test_a_place_that_comes_in_the_moment_of_leaving_goes_on() -> None:
    turns = Turns(1)
    await turns.take("a")
    leaving, staying, early = (asyncio.create_task(turns.take(account)) for account in "abc")
    await settle()
    early.cancel()
    turns.give_back()
    leaving.cancel()
    await settle()
    assert (leaving.cancelled(), early.cancelled(), staying.done()) == (True, True, True)
    turns.give_back()
    await asyncio.wait_for(turns.take("d"), 1)


async def test_a_wait_for_a_place_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "PATIENCE", 0.01)
    faked = Faked()
    begin(faked, *RUNNING)
    await settle()
    with pytest.raises(Busy, match="too many"):
        await faked.verdict(grammar("a"))
    faked.processes[0].answer(0)
    await settle()
    assert faked.tried == RUNNING


async def test_a_trial_whose_client_has_left_holds_its_place_until_it_ends() -> None:
    faked = Faked()
    running = begin(faked, *RUNNING)
    await settle()
    for task in running:
        task.cancel()
    begin(faked, "a")
    await settle()
    assert faked.tried == RUNNING
    faked.processes[0].answer(1)
    await settle()
    assert faked.tried == [*RUNNING, "a"]


async def test_a_process_that_does_not_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    faked = Faked()
    monkeypatch.setattr(trials, "ANSWER_TIMEOUT", 0.01)
    for outcome in await asyncio.gather(*begin(faked, *RUNNING), return_exceptions=True):
        assert isinstance(outcome, Busy)
    monkeypatch.setattr(trials, "ANSWER_TIMEOUT", 10.0)
    (task,) = begin(faked, "a")
    await settle()
    faked.processes[1].answer(0, Verdict(0, cost=3))
    assert (await task).cost == 3


@pytest.mark.parametrize(("measured", "num_trials"), [(True, 2), (False, 1)])
async def test_what_a_trial_took_is_not_held_against_a_grammar_for_good(
    measured: bool, num_trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MEASURE_LASTS", 0.0)
    store = Known(lambda _: Verdict(0, TOO_LONG, is_measured=measured))
    for _ in range(2):
        error = await store.prepare(grammar("a"))
        assert error is not None
        assert error.code is ErrorCode.INVALID_GRAMMAR
    assert store.num_trials == num_trials


async def test_a_preparation_ends_with_the_last_request_that_waits_for_it() -> None:
    store = GrammarStore("")
    faked = store._trials = Faked()
    begin(faked, *RUNNING)
    first, second = (asyncio.create_task(store.prepare(grammar("a"))) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert faked._places.num_waiting("") == 1
    second.cancel()
    await settle()
    assert faked._places.num_waiting("") == 0
    faked.processes[0].answer(0)
    await settle()
    assert faked.tried == RUNNING


async def test_a_grammar_that_was_used_elsewhere_is_ready_however_many_wait() -> None:
    def refuse(_: Grammar) -> Verdict:
        raise Busy(trials.CROWDED)

    store = Known(refuse)
    error = await store.prepare(grammar("a"))
    assert error is not None
    assert error.code is ErrorCode.OVERLOADED
    assert await store.prepare(grammar("a"), was_used=True) is None
    assert store.is_ready(grammar("a"))
    assert store.num_trials == 1
