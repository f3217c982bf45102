"""The engines' part of a request: where each of its choices runs, and where it goes on when its engine fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from batching.client import RESTART_HINT_MS, Receiver
from engines.types import ErrorCode, GenerationRequest, OutputDelta, RequestError
from server.balancing import Replica
from server.choice import Choice
from server.failover import Failure, Loss, Outcome, RetryBudget, decide
from server.job import Job
from server.metrics import Metrics
from server.placing import Place, Placed
from server.quarantine import Quarantine, refused
from server.routing import pick

ABORT_PATIENCE = 1.0  # seconds to wait for the worker's account of aborted work
RESTART_PATIENCE = 15.0  # seconds to wait for a worker that was started again, where there are several,
RESTART_LOOK = 0.02  # and between looks
EXPECTED_OUTPUT = 512  # tokens at most that an answer is expected to have
STOPPED = RequestError(
    ErrorCode.ENGINE_FAILED, "The engine stopped while it was working on this request.", RESTART_HINT_MS
)
SILENT = RequestError(ErrorCode.ENGINE_FAILED, "The engine gives no sign of life.", RESTART_HINT_MS)
BEGUN_FIRST = -1  # the priority of what was begun elsewhere: its client is reading already

log = logging.getLogger("penstock.work")


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
        self.failures: list[Failure] = []  # of engines, under its choices

    @property
    def is_under_way_again(self) -> bool:
        """A choice was moved and its new engine has not given it a token yet."""
        return any(p.num_moves and not p.has_progressed and p.choice.finish_reason is None for p in self._placed)

    @property
    def _quarantine(self) -> Quarantine:
        return self._job.deployment.quarantine

    @property
    def _account(self) -> str:
        return self._job.caller.principal.account_id

    def submit(self) -> None:
        """All choices to one replica, where they share what they begin with. Raises Overloaded, or `refused`."""
        now = time.monotonic()
        if any(self._quarantine.is_refused(self._account, prompt, now) for prompt in self._job.prompts):
            raise refused()
        replica = pick(self._job.deployment, self._job.prompts[0].token_ids, self._terms.cache_salt)
        for index in range(self._job.num_choices):
            number, sample = divmod(index, self._job.num_samples)
            prompt = self._job.prompts[number]
            choice = Choice(index, prompt, prompt.new_stream(), number, sample)
            self._terms.budget.note_begun(now)
            placed = Placed(choice)
            self._placed.append(placed)
            self.choices.append(choice)
            if self._quarantine.is_suspect(self._account, prompt, now):
                placed.output_when_moved = 0
                self._wait_for_turn(placed, None, STOPPED)
            else:
                placed.place = self._place(choice, replica, 0)

    def take(self) -> Iterator[tuple[Placed, OutputDelta]]:
        """What has arrived for choices that have not ended."""
        self.ready.clear()
        for placed in self._placed:
            if placed.choice.finish_reason is None and (delta := placed.take()) is not None:
                yield placed, delta

    def _place(self, choice: Choice, replica: Replica, num_moves: int) -> Place:
        """The receiver is registered before the work is sent (`WorkerClient.submit`)."""
        client = replica.client
        assert client is not None
        now, arrival = time.monotonic(), self._job.caller.arrival
        if num_moves:
            choice.submitted_after = now - arrival
        request = self._request(choice, num_moves, arrival if num_moves == 0 else now)
        num_tokens = len(choice.prompt.token_ids) + min(choice.sampling.max_tokens, EXPECTED_OUTPUT)
        place = Place(replica, client, client.submit(request, self.ready), num_tokens)
        replica.num_open += 1
        replica.open_tokens += num_tokens
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
        deployment, choice, failed, now = self._job.deployment, placed.choice, placed.place, time.monotonic()
        if failed is not None:
            deployment.balancer.failed(failed.replica, failed.client, now)
        loss = self._loss(placed)
        outcome = decide(loss, self._terms.budget, now)
        self._terms.metrics.health.failovers.labels(deployment.model, deployment.version, outcome).inc()
        self.failures.append(Failure(now, choice.index, outcome, choice.num_output))
        if not outcome.moves:
            self._blame(placed, outcome, loss, now)
            return False
        log.info("request %s: its engine failed after %d tokens: %s", self._id(placed), choice.num_output, outcome)
        if outcome is Outcome.RETRIED:
            placed.was_retried = True
        if not (loss.has_output and loss.sampling.can_continue(loss.continuation)):
            choice.begin_again()
        placed.num_moves += 1
        placed.output_when_moved = choice.num_output
        self._begin_elsewhere(placed, error, is_alone=outcome is Outcome.ISOLATED)
        return True

    def move_silent(self) -> bool:
        """No engine has given a sign of life for too long. Whether what has not ended goes on at another replica."""
        silent = [placed for placed in self._placed if placed.choice.finish_reason is None]
        places = [placed.place for placed in silent if placed.place is not None]
        balancer = self._job.deployment.balancer
        if len(places) < len(silent) or not all(balancer.has_other(place.replica) for place in places):
            return False
        for place in places:
            place.abort()
        return all(self.move(placed, SILENT) for placed in silent)

    def _id(self, placed: Placed) -> str:
        return f"{self._job.caller.request_id}-{placed.choice.index}"

    def _loss(self, placed: Placed) -> Loss:
        deployment, place = self._job.deployment, placed.place
        has_died = place is not None and place.client.closed.is_set()
        is_served_again = has_died and len(deployment.replicas) > 1 and deployment.state.is_served
        return Loss(
            has_output=placed.choice.has_output,
            is_streamed=self._job.streamed,
            was_retried=placed.was_retried,
            has_progressed=placed.has_progressed,
            num_moves=placed.num_moves,
            sampling=placed.choice.prompt.sampling,
            continuation=deployment.continuation,
            has_other=is_served_again or (place is not None and deployment.balancer.has_other(place.replica)),
            has_died=has_died,
            was_alone=placed.is_alone or (place is not None and place.client.num_lost == 1),
        )

    def _blame(self, placed: Placed, outcome: Outcome, loss: Loss, now: float) -> None:
        """It ends here. Whoever sends it again is told, or has it run alone."""
        placed.settled.set()
        if outcome is Outcome.REFUSED:
            placed.is_refused = True
            log.error("request %s is refused: it was alone when its engine stopped, twice", self._id(placed))
            self._quarantine.refuse(self._account, placed.choice.prompt, now)
        elif loss.has_died:
            self._quarantine.suspect(self._account, placed.choice.prompt, now)

    def _begin_elsewhere(self, placed: Placed, error: RequestError, *, is_alone: bool) -> None:
        failed = placed.place
        placed.leave()
        placed.is_alone, placed.settled = False, asyncio.Event()
        if is_alone:
            self._wait_for_turn(placed, failed, error)
        elif not self._find_place(placed, failed):
            placed.waiting = asyncio.create_task(self._wait_for_place(placed, failed, error))

    def _find_place(self, placed: Placed, failed: Place | None) -> bool:
        """On any replica but the engine that failed; one that was started again is another."""
        is_the_same = failed is not None and failed.replica.client is failed.client
        without = failed.replica if failed is not None and is_the_same else None
        replica = self._job.deployment.balancer.pick(time.monotonic(), without=without)
        if replica is not None:
            placed.place = self._place(placed.choice, replica, placed.num_moves)
        return replica is not None

    async def _wait_for_place(self, placed: Placed, failed: Place | None, error: RequestError) -> None:
        """Until a replica serves. In vain, it ends in the error."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESTART_PATIENCE):
                while not self._find_place(placed, failed):
                    if not self._job.deployment.state.is_served:
                        break
                    await asyncio.sleep(RESTART_LOOK)
        if placed.place is None:
            placed.lost = OutputDelta.failed(self._id(placed), error)
            self.ready.set()

    def _wait_for_turn(self, placed: Placed, failed: Place | None, error: RequestError) -> None:
        placed.waiting = asyncio.create_task(self._run_alone(placed, failed, error))

    async def _run_alone(self, placed: Placed, failed: Place | None, error: RequestError) -> None:
        """The only suspect on any engine, until it has a token."""
        async with self._quarantine.turn:
            await self._wait_for_place(placed, failed, error)
            placed.is_alone = True
            await placed.settled.wait()
            if placed.has_progressed:
                placed.is_alone = False
                self._quarantine.acquit(self._account, placed.choice.prompt)

    # --- the end

    async def close(self) -> None:
        """Stop what still runs, and hear how far its prompts had come: that is what is charged."""
        for placed in self._placed:
            if placed.waiting is not None:
                placed.waiting.cancel()
        try:
            await self._abort_unfinished()
        finally:
            for placed in self._placed:
                placed.leave()

    async def _abort_unfinished(self) -> None:
        unfinished = [
            (p.choice, p.place) for p in self._placed if p.choice.finish_reason is None and p.place is not None
        ]
        for _, place in unfinished:
            place.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_PATIENCE):
                for choice, place in unfinished:
                    await _await_end(choice, place.receiver)


async def _await_end(choice: Choice, receiver: Receiver) -> None:
    while choice.finish_reason is None:
        delta = await receiver.get()
        choice.count(delta)
        choice.finish_reason = delta.finish_reason
