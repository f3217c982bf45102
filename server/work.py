"""The engines' part of a request: where each of its choices runs, and where it goes on when its engine fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from batching.client import Receiver, WorkerClient
from engines.types import ErrorCode, GenerationRequest, OutputDelta, RequestError
from server.choice import Choice
from server.failover import Loss, Outcome, RetryBudget, decide
from server.job import Job
from server.metrics import Metrics
from server.registry import Replica
from server.routing import pick, pick_other

ABORT_PATIENCE = 1.0  # seconds to wait for the worker's account of aborted work
BEGUN_FIRST = -1  # the priority of what was begun elsewhere: its client is reading already

log = logging.getLogger("penstock.work")


@dataclass(slots=True, frozen=True)
class Place:
    """A choice's place on a replica, to be left once."""

    replica: Replica
    client: WorkerClient
    receiver: Receiver

    def abort(self) -> None:
        self.client.abort(self.receiver.request_id)

    def leave(self) -> None:
        self.client.forget(self.receiver.request_id)
        self.replica.num_open -= 1


@dataclass(slots=True)
class Placed:
    """A choice and its present place. `num_moves` and what it had at the last of them say whether it gets anywhere."""

    choice: Choice
    place: Place
    num_moves: int = 0
    was_retried: bool = False
    output_when_moved: int = -1

    @property
    def has_progressed(self) -> bool:
        return self.choice.num_output > self.output_when_moved


@dataclass(slots=True, frozen=True)
class Terms:
    """What holds for every choice of a request."""

    deadline: float
    cache_salt: bytes
    budget: RetryBudget
    metrics: Metrics


class Work:
    """Every choice that was submitted, until `close`. `ready` is set when there is something to take."""

    def __init__(self, job: Job, terms: Terms) -> None:
        self.ready = asyncio.Event()
        self._job = job
        self._terms = terms
        self.choices: list[Choice] = []
        self._placed: list[Placed] = []

    @property
    def is_under_way_again(self) -> bool:
        """A choice was moved and its new engine has not given it a token yet."""
        return any(p.num_moves and not p.has_progressed and p.choice.finish_reason is None for p in self._placed)

    def submit(self) -> None:
        """All choices to one replica, where they share what they begin with. Raises Overloaded."""
        replica = pick(self._job.deployment)
        for index in range(self._job.num_choices):
            number, sample = divmod(index, self._job.num_samples)
            prompt = self._job.prompts[number]
            choice = Choice(index, prompt, prompt.new_stream(), number, sample)
            self._terms.budget.note_begun(time.monotonic())
            self._placed.append(Placed(choice, self._place(choice, replica, 0)))
            self.choices.append(choice)

    def take(self) -> Iterator[tuple[Placed, OutputDelta]]:
        """What has arrived for choices that have not ended."""
        self.ready.clear()
        for placed in self._placed:
            if placed.choice.finish_reason is None and (delta := placed.place.receiver.take()) is not None:
                yield placed, delta

    def _place(self, choice: Choice, replica: Replica, num_moves: int) -> Place:
        """The receiver is registered before the work is sent (`WorkerClient.submit`)."""
        client = replica.client
        assert client is not None
        now, arrival = time.monotonic(), self._job.caller.arrival
        if num_moves:
            choice.submitted_after = now - arrival
        request = self._request(choice, num_moves, arrival if num_moves == 0 else now)
        place = Place(replica, client, client.submit(request, self.ready))
        replica.num_open += 1
        return place

    def _request(self, choice: Choice, num_moves: int, arrival: float) -> GenerationRequest:
        """A worker knows every submission by an id of its own."""
        caller, prompt = self._job.caller, choice.prompt
        again = f".{num_moves}" if num_moves else ""
        return GenerationRequest(
            request_id=f"{caller.request_id}-{choice.index}{again}",
            account=caller.principal.account_id,
            prompt_token_ids=prompt.token_ids,
            prompt_text=prompt.text,
            texts=prompt.texts,
            sampling=choice.sampling,
            arrival=arrival,
            deadline=self._terms.deadline,
            priority=self._priority(choice),
            cache_salt=self._terms.cache_salt,
            output_token_ids=choice.token_ids.tolist(),
            is_moved=num_moves > 0,
            group=f"{caller.request_id}-p{choice.prompt_number}" if self._job.num_samples > 1 else "",
        )

    def _priority(self, choice: Choice) -> int:
        caller = self._job.caller
        return BEGUN_FIRST if choice.token_ids and not caller.is_in_background else caller.priority

    # --- when an engine fails

    def move(self, placed: Placed, error: RequestError) -> bool:
        """Whether a choice that ended in this error goes on at another replica."""
        if error.code is not ErrorCode.ENGINE_FAILED:
            return False
        deployment, choice = self._job.deployment, placed.choice
        other = pick_other(deployment, placed.place.replica)
        outcome = decide(self._loss(placed, other), self._terms.budget, time.monotonic())
        self._terms.metrics.failovers.labels(deployment.model, deployment.version, outcome).inc()
        if other is None or not outcome.moves:
            return False
        request_id = placed.place.receiver.request_id
        log.info("request %s: its engine failed after %d tokens: %s", request_id, choice.num_output, outcome)
        if outcome is Outcome.RETRIED:
            placed.was_retried = True
            choice.begin_again()
        placed.num_moves += 1
        placed.output_when_moved = choice.num_output
        failed, placed.place = placed.place, self._place(choice, other, placed.num_moves)
        failed.leave()
        return True

    def _loss(self, placed: Placed, other: Replica | None) -> Loss:
        return Loss(
            has_output=placed.choice.has_output,
            is_streamed=self._job.streamed,
            was_retried=placed.was_retried,
            has_progressed=placed.has_progressed,
            num_moves=placed.num_moves,
            sampling=placed.choice.prompt.sampling,
            continuation=self._job.deployment.continuation,
            has_other=other is not None,
        )

    # --- the end

    async def close(self) -> None:
        """Stop what still runs, and hear how far its prompts had come: that is what is charged."""
        try:
            await self._abort_unfinished()
        finally:
            for placed in self._placed:
                placed.place.leave()

    async def _abort_unfinished(self) -> None:
        unfinished = [placed for placed in self._placed if placed.choice.finish_reason is None]
        for placed in unfinished:
            placed.place.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_PATIENCE):
                for placed in unfinished:
                    await _await_end(placed)


async def _await_end(placed: Placed) -> None:
    choice = placed.choice
    while choice.finish_reason is None:
        delta = await placed.place.receiver.get()
        choice.count(delta)
        choice.finish_reason = delta.finish_reason
