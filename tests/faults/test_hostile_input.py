"""Patterns, schemas and templates that are meant to harm: refused or compiled in time, and the neighbours go on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.grammars.store import GrammarStore
from engines.types import ErrorCode, Grammar, GrammarKind
from server import schemas
from server.errors import InvalidRequest
from server.text.chat_template import ChatTemplate
from server.text.template_trial import try_templates
from server.text.tokenizer_files import TokenizerError
from tests import hostile
from tests.clients import Tenant, chat
from tests.faults.loads import all_of, leave, open_readers, percentile, post
from tests.grammar_files import write_vocabulary
from tests.penstock_process import UNLIMITED, PenstockProcess
from tests.scale import IS_SOAK, cut, publish

EVERY = cut(16, 1)  # of them
MOST = 1.5  # seconds for one; asked for by `make soak`, on a machine that does nothing else
NEIGHBOURS, TOKENS = cut(2, 8), cut(60, 800)
MAX_TIMES = 2.0
SCHEMAS, TEMPLATES = hostile.schemas()[::EVERY], hostile.templates()[::EVERY]


async def grammar_outcome(store: GrammarStore, schema: Any) -> bool:
    """Whether it can be used; else it was refused for what it is."""
    try:
        text = schemas.as_json(schema, "response_format")
    except InvalidRequest:
        return False
    problem = await store.prepare(Grammar(GrammarKind.JSON_SCHEMA, text))
    assert problem is None or problem.code is ErrorCode.INVALID_GRAMMAR, problem
    return problem is None


def template_outcome(source: str) -> bool:
    try:
        try_templates({"default": source}, {}, "m")
    except TokenizerError:
        return False
    template = ChatTemplate({"default": source})
    with contextlib.suppress(InvalidRequest):
        template.render([{"role": "user", "content": "another one" * 99}])
    return True


@pytest.mark.timeout(1800)
async def test_each_is_refused_or_compiled_in_time(tmp_path: Path) -> None:
    store = GrammarStore(str(write_vocabulary(tmp_path)))
    assert await grammar_outcome(store, {"const": "the vocabulary is read"})
    times, used = [], 0
    for schema in SCHEMAS:
        started = time.monotonic()
        used += await grammar_outcome(store, schema)
        times.append(time.monotonic() - started)
    assert await grammar_outcome(store, {"type": "object"}), "harmless ones still work"
    await store.close()
    publish(18, "hostile patterns and schemas", number=len(times), compiled=used, s_slowest=max(times))
    assert not IS_SOAK or max(times) <= MOST


@pytest.mark.timeout(1800)
def test_each_template_is_refused_or_rendered_in_time() -> None:
    times, used = [], 0
    for source in TEMPLATES:
        started = time.monotonic()
        used += template_outcome(source)
        times.append(time.monotonic() - started)
    publish(18, "hostile templates", number=len(times), usable=used, s_slowest=max(times))
    assert not IS_SOAK or max(times) <= MOST


# --- neighbours: streams of the same engine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    config = f'[[models]]\nname = "m"\npath = "models/tiny-chat"\noptions = {{ threads = 1 }}\n{UNLIMITED}'
    with PenstockProcess(tmp_path_factory.mktemp("hostile"), config) as running:
        yield running


def asked(schema: Any) -> bytes:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return post(chat("m", "hello", 4, response_format=form))


async def beside(server: PenstockProcess, tenant: Tenant, others: Callable[[int], bytes] | None) -> float:
    """The p99 of gaps between a neighbour's tokens, in seconds, while two requests of `others` always run."""
    stream = post(chat("m", "hello", TOKENS, stream=True, ignore_eos=True), tenant.key)
    readers = await open_readers(server, [stream] * NEIGHBOURS)
    await all_of(readers, "has_begun", 60)
    for reader in readers:
        reader.keeps_times = True
    sending = [asyncio.create_task(_send(server, others, lane)) for lane in range(2) if others is not None]
    await all_of(readers, "is_done", cut(60, 600))
    for task in sending:
        task.cancel()
    ends = await asyncio.gather(*sending, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
    await leave(readers)
    return percentile([gap for reader in readers for gap in reader.gaps], 0.99)


async def _send(server: PenstockProcess, request: Callable[[int], bytes], lane: int) -> None:
    for number in range(lane, 10**9, 2):
        (reader,) = await open_readers(server, [request(number)])
        await all_of([reader], "head", 60)
        assert reader.head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 ", b"HTTP/1.1 413 ")), reader.head
        await leave([reader])


@pytest.mark.timeout(1800)
async def test_neighbours_hardly_notice(server: PenstockProcess) -> None:
    """They are compared with neighbours of as many requests whose schemas are harmless, and new each time."""
    tenant = Tenant.create(server)
    alone = await beside(server, tenant, None)
    harmless = await beside(server, tenant, lambda number: asked({"const": f"{number}"}))
    hostile_ones = await beside(server, tenant, lambda number: asked(SCHEMAS[number % len(SCHEMAS)]))
    figures = {"alone": alone, "beside_harmless": harmless, "beside_hostile": hostile_ones}
    publish(18, "neighbours", **{f"ms_ITL_p99_{name}": 1000 * value for name, value in figures.items()})
    assert not IS_SOAK or hostile_ones <= MAX_TIMES * harmless
