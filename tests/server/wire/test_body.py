import asyncio
import json
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from starlette.requests import ClientDisconnect, Request

from server.errors import APIError, InvalidRequest, PayloadTooLarge, RequestTimeout, UnsupportedParameter
from server.wire import body as body_module
from server.wire.body import LONG_BODY_BYTES, MAX_NAMES, MAX_NESTED, parse_json, read_json, read_query


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class Image(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["image"]
    url: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user"]
    content: str | list[Annotated[Text | Image, Field(discriminator="type")]]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    messages: list[Message] = Field(default_factory=list)
    stop: str | list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    seed: int | None = None
    at: datetime | None = None
    anything: Any = None
    even: int = 0

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("expected an even number.")
        return value

    @model_validator(mode="after")
    def _unsupported(self) -> "Body":
        if self.model == "forbidden":
            raise UnsupportedParameter("model")
        return self


def parse(body: object) -> Body:
    return parse_json(body if isinstance(body, bytes) else json.dumps(body).encode(), Body)


def refusal(body: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(body)
    assert caught.value.status == 400
    json.dumps(caught.value.envelope(), ensure_ascii=False).encode()  # as an answer is written
    return caught.value


def test_a_good_body() -> None:
    text = {"model": "big", "messages": [{"role": "user", "content": [{"type": "text", "text": "é\ud83d\ude00"}]}]}
    body = parse(text)
    assert body.messages[0].content == [Text(type="text", text="é😀")]
    assert parse({"model": "big", "at": "2025-01-01T00:00:00Z", "temperature": 1}).at is not None


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"model": 5}, "model", "valid string"),
        ({"model": None}, "model", "valid string"),
        ({"stop": 5}, "stop", "input should be a valid string or a valid array"),
        ({"stop": ["a", 5]}, "stop.1", "valid string"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"seed": True}, "seed", "valid integer"),
        ({"even": 3}, "even", "'even': expected an even number."),
        ({"messages": {}}, "messages", "valid array"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid string or"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role", "'system' or 'user'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages.0.content.0.text",
            "valid string",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "x" * 1000}]}]},
            "messages.0.content.0",
            "one of 'text', 'image'",
        ),
    ],
)
def test_a_wrong_value_names_its_field(changes: dict[str, object], param: str, words: str) -> None:
    error = refusal({"model": "big", **changes})
    assert (error.param, error.code) == (param, "invalid_value")
    assert words in error.message
    assert len(error.message) < 300


def test_a_missing_field_is_named() -> None:
    assert (refusal({}).param, refusal({}).code) == ("model", "missing_required_parameter")
    error = refusal({"model": "big", "messages": [{"role": "user"}]})
    assert (error.param, error.code) == ("messages.0.content", "missing_required_parameter")
    error = refusal({"model": "big", "messages": [{"role": "user", "content": [{"type": "image"}]}]})
    assert error.param == "messages.0.content.0.url"


def test_an_extra_field_is_unsupported() -> None:
    error = refusal({"model": "big", "colour": 1})
    assert isinstance(error, UnsupportedParameter)
    assert (error.param, error.code) == ("colour", "unsupported_parameter")
    assert refusal({"model": "big", "messages": [{"role": "user", "content": "", "x": 1}]}).param == "messages.0.x"


def test_a_validator_may_say_it_itself() -> None:
    assert refusal({"model": "forbidden"}).message == "Unsupported parameter: 'model'."


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b" \n ", "empty"),
        (b"{", "line 1 column 2"),
        (b'{"model": "big",\n "x" 1}', "line 2 column 6"),
        (b'{"model": "big"} {}', "Extra data at line 1 column 18"),
        (b'{"model": "\xff"}', "not UTF-8 at byte 11"),
        ('\ufeff{"model": "big"}'.encode(), "line 1 column 1"),
        ('{"model": "big"}'.encode("utf-16"), "not UTF-8"),
        (b'{"model": "big", "anything": NaN}', "NaN"),
        (b'{"model": "big", "anything": [Infinity]}', "Infinity"),
        (b'{"model": "big", "anything": -Infinity}', "-Infinity"),
        (b'{"model": "big", "anything": 1e999}', "too large"),
        (b'{"model": "big", "anything": -1e999}', "too large"),
        (b'{"model": "big", "seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"model": "big", "model": "small"}', "'model' stands twice"),
        (b'{"model": "big", "anything": {"a": 1, "b": 2, "a": 3}}', "'a' stands twice"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "stands twice"),
        (b'{"model": "\\ud800"}', "hex escape"),
        (b'{"model": "big", "anything": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 10_000, "nested"),
        (b'{"model": "big", "anything": ' + b"[" * 300 + b"]" * 300 + b"}", "recursion"),
        (b'{"model": "a\x00b"}', "control character"),
        (b"{'model': 'big'}", "line 1 column 2"),
    ],
)
def test_what_is_not_json(body: bytes, words: str) -> None:
    error = refusal(body)
    assert (error.code, error.param) == ("invalid_json", None)
    assert words in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize("body", [[], "text", 5, None, True, [{"model": "big"}]])
def test_the_top_is_an_object(body: object) -> None:
    assert "JSON object" in refusal(body).message


def test_the_clients_text_is_not_repeated_at_length() -> None:
    long = "x" * 100_000
    for body in ({long: 1, "model": "big"}, {"model": "big", "messages": [{"role": long}]}, {"model": [long]}):
        error = refusal(body)
        assert len(json.dumps(error.envelope())) < 700


def test_one_name_twice_among_many_is_found() -> None:
    names = ",".join(f'"{number}":0' for number in range(MAX_NAMES - 1))
    assert "stands twice" in refusal(f'{{{names},"7":0}}'.encode()).message


@pytest.mark.parametrize("where", ["{%s}", '{"model": "big", "messages": [{%s}]}', '{"anything": {"x": {%s}}}'])
def test_an_object_of_too_many_names_is_refused_before_it_is_validated(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Body, "model_validate_json", lambda body: pytest.fail("it was"))
    names = ",".join(f'"{number}":0' for number in range(MAX_NAMES + 1))
    assert "more than 4096 names" in refusal((where % names).encode()).message


@pytest.mark.parametrize("item", [b"[]", b"{}", b'{"a":[]}'])
def test_too_many_lists_and_objects_are_refused_unparsed(item: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *arguments, **options: pytest.fail("it was parsed"))
    body = b'{"model": "big", "anything": [' + b",".join([item] * MAX_NESTED) + b"]}"
    with pytest.raises(InvalidRequest, match="more than 100000 lists and objects"):
        parse(body)


def test_brackets_in_strings_are_text() -> None:
    text = '[{"\\' * MAX_NESTED
    assert parse({"model": "big", "anything": [text, text]}).anything == [text, text]


def test_a_string_that_never_ends_is_read_once() -> None:
    assert refusal(b'{"a":"' + b'\\"' * 500_000 + b"[" * (MAX_NESTED + 1)).code == "invalid_json"


@pytest.mark.parametrize("number", [2**63, -(2**64), 10**400, 1e308, 10**4000])
def test_large_numbers_are_a_value_or_refused(number: float) -> None:
    for field in ("seed", "temperature", "even", "anything"):
        _only_a_model_or_an_api_error(json.dumps({"model": "big", field: number}).encode())


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_near = st.fixed_dictionaries(
    {"model": st.just("big") | _json},
    optional={name: _json for name in Body.model_fields if name not in {"model", "messages"}}
    | {
        "messages": _json
        | st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "x"])}, optional={"content": _json, "x": _json}),
            max_size=3,
        )
    },
)


def _only_a_model_or_an_api_error(body: bytes) -> None:
    try:
        parse(body)
    except APIError as error:
        refused = error
    else:
        return
    assert refused.status == 400
    assert len(json.dumps(refused.envelope(), ensure_ascii=False).encode()) < 2000


@given(st.binary())
@example(b'{"model": "big", "anything": 1E400}')
def test_bytes_yield_a_model_or_an_api_error(body: bytes) -> None:
    _only_a_model_or_an_api_error(body)


@given(_near | _json)
def test_json_yields_a_model_or_an_api_error(body: object) -> None:
    _only_a_model_or_an_api_error(json.dumps(body).encode())


@given(_near, st.data())
def test_damaged_json_yields_a_model_or_an_api_error(body: object, data: st.DataObject) -> None:
    text = bytearray(json.dumps(body).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 5)))
        text[start:end] = data.draw(st.binary(max_size=4) | st.sampled_from([b"{", b"]", b'"', b"\\u", b"NaN", b"1e9"]))
    _only_a_model_or_an_api_error(bytes(text))


# The bytes as they arrive.


class Stall:
    """Stands for a client that sends nothing more."""


def request(chunks: Sequence[bytes | Stall | None], headers: dict[str, str] | None = None, query: str = "") -> Request:
    """None: the client has left."""
    waiting = list(chunks)

    async def receive() -> dict[str, object]:
        chunk = waiting.pop(0)
        if isinstance(chunk, Stall):
            await asyncio.Event().wait()
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": raw, "query_string": query.encode()}
    return Request(scope, receive)


async def test_a_body_arrives_in_pieces() -> None:
    assert (await read_json(request([b'{"mod', b"", b'el": "big"}']), Body)).model == "big"


async def test_a_long_body_is_parsed_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def parse_here(data: bytes, model: type[Body]) -> Body:
        threads.append(threading.get_ident())
        return parse_json(data, model)

    monkeypatch.setattr(body_module, "parse_json", parse_here)
    for size in (LONG_BODY_BYTES, LONG_BODY_BYTES + 1):
        await read_json(request([b'{"model": "big"}'.ljust(size)]), Body)
    assert threads[0] == threading.get_ident() != threads[1]


async def test_a_declared_length_above_the_limit_is_refused_unread() -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        await read_json(request([Stall()], {"content-length": "101"}), Body, limit=100)
    assert (caught.value.status, caught.value.headers["connection"]) == (413, "close")


async def test_bytes_above_the_limit_are_refused_as_they_arrive() -> None:
    with pytest.raises(PayloadTooLarge):
        await read_json(request([b"x" * 60, b"x" * 60, Stall()], {"content-length": "10"}), Body, limit=100)


@pytest.mark.parametrize("length", ["", "-1", "ten", "²", "1_0"])
async def test_a_nonsense_length_is_left_to_the_count(length: str) -> None:
    assert (await read_json(request([b'{"model": "big"}'], {"content-length": length}), Body)).model == "big"


async def test_an_absurd_length_is_refused() -> None:
    with pytest.raises(PayloadTooLarge):
        await read_json(request([b"{}"], {"content-length": "9" * 5000}), Body)


async def test_a_body_of_the_limit_itself_passes() -> None:
    body = b'{"model": "big"}'.ljust(100)
    headers = {"content-length": "100"}
    assert (await read_json(request([body], headers), Body, limit=100)).model == "big"


async def test_a_stalled_body_is_given_up() -> None:
    with pytest.raises(RequestTimeout) as caught:
        await read_json(request([b"{", Stall()]), Body, timeout=0.01)
    assert caught.value.status == 408


async def test_a_client_that_leaves_is_nobodys_error() -> None:
    with pytest.raises(ClientDisconnect):
        await read_json(request([b"{", None]), Body)


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid")
    limit: Annotated[int, Field(ge=1)] = 10


def test_a_query_string() -> None:
    assert read_query(request([], query="limit=5"), Query).limit == 5
    for text, param in (("limit=x", "limit"), ("limit=0", "limit"), ("limit=1&limit=2", "limit"), ("x=1", "x")):
        with pytest.raises(InvalidRequest) as caught:
            read_query(request([], query=text), Query)
        assert caught.value.param == param
