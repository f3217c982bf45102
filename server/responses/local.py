"""What one WebSocket remembers of its last responses that are not stored, so that they can be gone on with too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from server.wire.response_items import Item

MAX_REMEMBERED = 8


@dataclass(slots=True, frozen=True)
class Conversation:
    """All items up to and with a response's output. `stored_as`: the response that the store has all of it under."""

    items: Sequence[Item]
    stored_as: str | None


class LocalConversations:
    """One connection's, by response id, the latest few."""

    def __init__(self) -> None:
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()

    def get(self, response_id: str) -> Conversation | None:
        return self._conversations.get(response_id)

    def remember(self, response_id: str, conversation: Conversation) -> None:
        self._conversations[response_id] = conversation
        while len(self._conversations) > MAX_REMEMBERED:
            self._conversations.popitem(last=False)

    def forget(self, response_id: object) -> None:
        """What is no id of one is nothing to forget."""
        if isinstance(response_id, str):
            self._conversations.pop(response_id, None)
