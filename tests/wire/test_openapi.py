"""`/openapi.json`: who may read it, that it is whole, and that the server is as it says, whatever it is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from server.app import create_document
from tests.court import judged
from tests.penstock_process import ADMIN_KEY, API_KEY, UNLIMITED, PenstockProcess
from tests.scale import IS_SOAK
from tests.wire.conftest import chat_body, check_error

MODELS = '[[models]]\nname = "echo"\nengine = "fake"\n[[models]]\nname = "vectors"\nengine = "fake"\ntask = "embed"\n'
URL = "/openapi.json"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
MOST = 64  # of what a number of tokens may be


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """Requests that get further than to a model's name or to what no model here can do, and answers that end."""
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            fields = schema["properties"]
            fields |= {key: _narrowed(key, value) for key, value in fields.items()}
    return document


def _narrowed(key: str, value: dict[str, Any]) -> dict[str, Any]:
    if key == "model":
        return {"enum": ["echo", "vectors"]}
    if key in ("max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of"):
        return {"anyOf": [{"type": "integer", "maximum": MOST}, {"type": "null"}]}
    says_nothing = not value.keys() & {"type", "anyOf", "$ref", "enum", "const", "oneOf"}
    return {"type": "null"} if says_nothing else value


api = schemathesis.openapi.from_dict(narrowed(create_document()))
api.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE], max_examples=8)
api.config.phases.update(phases=["fuzzing"])


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    """One of its own: accounts, keys and plans are made in it."""
    with judged(PenstockProcess(tmp_path_factory.mktemp("openapi"), MODELS + UNLIMITED, judged=True)) as running:
        yield running


def test_any_valid_key_opens_it(admin: httpx.Client, http: httpx.Client, stranger: httpx.Client) -> None:
    check_error(stranger.get(URL), 401)
    answers = [client.get(URL) for client in (admin, http)]
    assert [answer.json() for answer in answers] == [create_document()] * 2


def test_it_is_whole() -> None:
    """Every route says what it answers; every reference leads somewhere; every schema is one."""
    document = create_document()
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= schemas.keys()
    operations = [
        (method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    answers = {path: item["responses"]["200"].get("content", {}) for _, path, item in operations if path != URL}
    assert [path for path, content in answers.items() if content.get("application/json") == {"schema": {}}] == []
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)


def test_what_a_chat_completion_is(http: httpx.Client) -> None:
    """Not only what schemathesis happens to send is as the document says."""
    document = create_document()
    operation = document["paths"]["/v1/chat/completions"]["post"]
    for name, instance in (
        ("request", chat_body()),
        ("answer", http.post("/v1/chat/completions", json=chat_body()).json()),
    ):
        part = operation["requestBody"] if name == "request" else operation["responses"]["200"]
        schema = part["content"]["application/json"]["schema"] | {"components": document["components"]}
        Draft202012Validator(schema).validate(instance)
    assert operation["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    assert operation["security"] == [{"apiKey": []}]


@api.parametrize()
@settings(
    max_examples=60 if IS_SOAK else 8,
    deadline=None,
    derandomize=not IS_SOAK,
    suppress_health_check=list(HealthCheck),
)
def test_the_server_is_as_it_says(documented: PenstockProcess, case: Case) -> None:
    is_admins = any("adminKey" in needed for needed in case.operation.definition.raw.get("security", ()))
    headers = {"Authorization": f"Bearer {ADMIN_KEY if is_admins else API_KEY}"}
    # The query of a list of models is Anthropic's, and read for its clients alone.
    is_ignored = case.operation.label == "GET /v1/models"
    checks = [check for check in CHECKS if not (is_ignored and check is negative_data_rejection)]
    case.call_and_validate(documented.root_url, headers=headers, checks=checks)
