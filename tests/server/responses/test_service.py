"""What a request goes on with."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import APIError
from server.responses.service import MAX_CONVERSATION, ResponsesService
from server.store.errors import TooMuch
from server.store.responses import StoredResponse
from server.wire.responses import ResponsesRequest
from tests.server.house import PRINCIPAL
from tests.server.store.test_responses import response

REQUEST = ResponsesRequest(model="m", previous_response_id="resp_1")


class PaperStore:
    def __init__(self, status: str) -> None:
        self.status = status

    async def get(self, account_id: str, response_id: str) -> StoredResponse:
        return response(response_id, status=self.status)

    async def conversation(self, account_id: str, response_id: str, max_characters: int) -> None:
        if max_characters == MAX_CONVERSATION:
            raise TooMuch


@pytest.mark.parametrize(
    ("status", "code"), [("completed", "context_length_exceeded"), ("in_progress", "previous_response_not_ended")]
)
async def test_a_previous_response_that_can_t_be_gone_on_with(status: str, code: str) -> None:
    store: Any = PaperStore(status)
    pipeline: Any = SimpleNamespace()
    caller: Any = SimpleNamespace(principal=PRINCIPAL)
    with pytest.raises(APIError) as caught:
        await ResponsesService(pipeline, store, b"", timedelta(days=1)).read(caller, REQUEST)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "previous_response_id", code)
