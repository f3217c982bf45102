"""A request for a response -> what runs it, tells of it and keeps it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from server.errors import InvalidRequest, NotFound, PermissionDenied
from server.generation import Generation
from server.job import Caller
from server.pipeline import Pipeline
from server.reachable import database_reached
from server.responses.answer import ResponseBuilder
from server.responses.asking import TOO_LONG, chat_of, fitted, own_names
from server.responses.compacting import FEATURE, ID_PREFIX, CompactedAnswer, summarizing
from server.responses.conversation import Message, Reading, messages_of
from server.responses.local import Conversation, LocalConversations
from server.responses.opening import opening_body
from server.responses.recorder import Kept, Recorder
from server.responses.scribe import Scribe
from server.responses.seal import Seal
from server.responses.telling import Telling
from server.store.errors import TooMuch
from server.store.responses import Responses, StoredResponse
from server.wire.common import new_id
from server.wire.response_body import LIVE
from server.wire.response_items import Item, ItemReference, kept
from server.wire.responses import (
    ENCRYPTED_REASONING,
    LOGPROBS,
    AnswerFields,
    CompactRequest,
    ConversationFields,
    ResponsesRequest,
)

MAX_CONVERSATION = 8 * 2**20  # characters of stored items, as JSON: each request that goes on with them reads them


@dataclass(slots=True, frozen=True)
class Asked:
    """What a request gives the model to read: the conversation that it goes on with, and its own input."""

    before: Conversation
    own: Sequence[Item]
    messages: Sequence[Message]


@dataclass(slots=True, frozen=True)
class Prepared:
    """A response that nothing is wrong with. It holds nothing yet."""

    generation: Generation
    asked: Asked
    builder: ResponseBuilder
    recorder: Recorder | None

    @property
    def telling(self) -> Telling:
        return Telling(self.generation, self.builder, self.recorder)

    def remember_in(self, local: LocalConversations) -> None:
        """With its answer, once it has ended. What is stored is read where it may be deleted."""
        if self.recorder is None:
            output = msgspec.to_builtins(self.builder.body.output)
            conversation = Conversation([*self.asked.before.items, *self.asked.own, *output], None)
            local.remember(self.builder.body.id, conversation)


class ResponsesService:
    """One a gateway."""

    def __init__(self, pipeline: Pipeline, store: Responses, seal_key: bytes, keep: timedelta) -> None:
        self.store = store
        self.scribe = Scribe(store)
        self.owner = new_id("gateway")
        self._pipeline = pipeline
        self._seal_key = seal_key
        self._keep = keep

    def seal(self, caller: Caller) -> Seal:
        return Seal(self._seal_key, caller.principal.account_id)

    async def prepare(
        self, caller: Caller, request: ResponsesRequest, local: LocalConversations | None = None
    ) -> Prepared:
        """`local` is what the request's connection remembers. Raises APIError; nothing is held yet."""
        asked = await self.read(caller, request, local)
        generation = await self._fitted(caller, request, asked.messages)
        job = generation.job
        body = opening_body(request, job.head, job.prompts[0].sampling)
        sealed = self.seal(caller).close if request.includes(ENCRYPTED_REASONING) else None
        recorder = Recorder(self.scribe, self._kept(caller, asked), body) if request.is_stored else None
        return Prepared(generation, asked, ResponseBuilder(body, sealed), recorder)

    async def _fitted(self, caller: Caller, request: AnswerFields, messages: Sequence[Message]) -> Generation:
        async def attempt(some: Sequence[Message]) -> Generation:
            with own_names():
                return await self._pipeline.chat(caller, chat_of(request, some), FEATURE, ID_PREFIX)

        return await fitted(messages, attempt, truncate=request.truncation == "auto")

    def _kept(self, caller: Caller, asked: Asked) -> Kept:
        """A conversation that is stored is gone on with; of one that is not, all is this response's own input."""
        before = asked.before
        inputs = asked.own if before.stored_as else [*before.items, *asked.own]
        return Kept(caller.principal.account_id, self.owner, self._keep, inputs, before.stored_as)

    async def count_tokens(self, caller: Caller, request: AnswerFields) -> int:
        asked = await self.read(caller, request)
        if request.truncation == "auto":
            generation = await self._fitted(caller, request, asked.messages)
            return len(generation.job.prompts[0].token_ids)
        with own_names():
            return await self._pipeline.count_tokens(caller, chat_of(request, asked.messages), FEATURE)

    async def compact(self, caller: Caller, request: CompactRequest) -> CompactedAnswer:
        """Raises APIError; nothing is held yet."""
        asked = await self.read(caller, request)
        generation = await summarizing(self._pipeline, caller, request.model, asked.messages)
        return CompactedAnswer(generation, asked.messages, self.seal(caller))

    # --- what there is to read

    async def read(self, caller: Caller, request: ConversationFields, local: LocalConversations | None = None) -> Asked:
        """Raises NotFound for a response or an item that the account does not have, and InvalidRequest."""
        before = await self._before(caller, request.previous_response_id, local)
        own = await self._own_items(caller, request, before)
        encoder = self._pipeline.generating(caller, request.model).encoder
        seal = self.seal(caller)
        has_image = any(_has_image(item) for item in (*before.items, *own))
        reading = Reading(encoder.words_for_image() if has_image else None, lambda sealed: seal.open(sealed, "input"))
        messages = messages_of([*before.items, *own], request.instructions, reading)
        return Asked(before, own, messages)

    async def _before(self, caller: Caller, response_id: str | None, local: LocalConversations | None) -> Conversation:
        if response_id is None:
            return Conversation((), None)
        if local is not None and (remembered := local.get(response_id)) is not None:
            return remembered
        account = caller.principal.account_id
        with database_reached():
            stored = await self.store.get(account, response_id)
        if stored is None:
            raise _previous_not_found(response_id)
        if stored.status in LIVE:
            message = f"The previous response '{response_id}' has not ended yet."
            raise InvalidRequest(message, param="previous_response_id", code="previous_response_not_ended")
        return Conversation(await self._stored_items(account, response_id), response_id)

    async def _stored_items(self, account: str, response_id: str) -> list[Item]:
        try:
            with database_reached():
                items = await self.store.conversation(account, response_id, MAX_CONVERSATION)
        except TooMuch:
            message = f"The conversation up to '{response_id}' is too long: begin a new one with the latest of it."
            raise InvalidRequest(message, param="previous_response_id", code=TOO_LONG) from None
        if items is None:
            raise _previous_not_found(response_id)
        return items

    async def _own_items(self, caller: Caller, request: ConversationFields, before: Conversation) -> list[Item]:
        """With what references stand for in their place."""
        wanted = [item.id for item in request.input if isinstance(item, ItemReference)]
        found = {item["id"]: item for item in before.items}
        if missing := [item_id for item_id in wanted if item_id not in found]:
            with database_reached():
                found |= await self.store.items(caller.principal.account_id, missing)
        for item_id in wanted:
            if item_id not in found:
                raise NotFound(f"Item with id '{item_id[:128]}' not found.", param="input", code="item_not_found")
        return [found[item.id] if isinstance(item, ItemReference) else kept(item) for item in request.input]

    # --- what is stored

    async def stored(self, caller: Caller, response_id: str) -> StoredResponse:
        """Raises NotFound, and PermissionDenied for a key that may make none."""
        if not caller.principal.may_use_feature(FEATURE):
            raise PermissionDenied(f"This API key may not use '{FEATURE}'.")
        if "\0" in response_id:  # PostgreSQL would not even look for it
            raise response_not_found(response_id)
        with database_reached():
            found = await self.store.get(caller.principal.account_id, response_id)
        if found is None:
            raise response_not_found(response_id)
        return found

    async def delete(self, caller: Caller, response_id: str) -> None:
        """Raises NotFound."""
        await self.stored(caller, response_id)
        with database_reached():
            await self.store.delete(caller.principal.account_id, response_id)


def check_included(stored: StoredResponse, include: Sequence[str]) -> None:
    """What is told besides is what was asked for when it was made. Raises InvalidRequest for more than that."""
    if not {LOGPROBS, ENCRYPTED_REASONING} & set(include):
        return
    items = json.loads(stored.body)["output"]
    parts = [part for item in items if item["type"] == "message" for part in item["content"]]
    lacks_logprobs = any(part["text"] and not part["logprobs"] for part in parts)
    lacks_sealed = any("encrypted_content" not in item for item in items if item["type"] == "reasoning")
    for name, is_lacking in ((LOGPROBS, lacks_logprobs), (ENCRYPTED_REASONING, lacks_sealed)):
        if is_lacking and name in include:
            message = f"This response has no '{name}': it was made without."
            raise InvalidRequest(message, param="include")


def response_not_found(response_id: str) -> NotFound:
    return NotFound(f"Response with id '{response_id[:128]}' not found.", code="response_not_found")


def _previous_not_found(response_id: str) -> NotFound:
    message = f"Previous response with id '{response_id[:128]}' not found."
    return NotFound(message, param="previous_response_id", code="previous_response_not_found")


def _has_image(item: Item) -> bool:
    content = item.get("content") or item.get("output") or ()
    return not isinstance(content, str) and any(part.get("type") == "input_image" for part in content)
