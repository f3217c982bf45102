"""Traces of a real server, as a collector of OTLP gets them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from tests.penstock_process import API_KEY, FAKE_MODEL, UNLIMITED, PenstockProcess

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="penstock[otel] is not installed")

from tests.otlp_collector import Collector, Span

CHAT = "/v1/chat/completions"
ROUTE = f"POST {CHAT}"
PHASES = ["prepare", "queue", "prefill", "decode"]
INTERNAL, SERVER = 1, 2  # kinds of spans, as OTLP counts them
CANARY, HEADER = "canary-of-a-prompt", "canary-of-a-header"
SLOW = '[[models]]\nname = "slow"\nengine = "fake"\noptions = { delay_ms = 20 }\n'


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    config = FAKE_MODEL + SLOW + UNLIMITED + f'[tracing]\nendpoint = "{collector.endpoint}"\n'
    environ = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        running = PenstockProcess(tmp_path_factory.mktemp("tracing"), config).start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def http(server: PenstockProcess) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def body(model: str = "echo", **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": CANARY}], "max_tokens": 6, **fields}


class Trace:
    """A new one of a client, as its `traceparent` says."""

    def __init__(self, flags: str = "01") -> None:
        self.trace_id, self.parent_id = os.urandom(16).hex(), os.urandom(8).hex()
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.parent_id}-{flags}"}

    def spans(self, collector: Collector, root: str = ROUTE) -> dict[str, Span]:
        """By name, when all have arrived: the outermost ends last, and those within it leave with it."""
        collector.wait_for(lambda span: span.trace_id == self.trace_id and span.name == root)
        own = [span for span in collector.spans if span.trace_id == self.trace_id]
        assert len({span.name for span in own}) == len(own)
        return {span.name: span for span in own}


def check_phases(spans: dict[str, Span], generation: Span, expected: list[str]) -> None:
    """They are the generation's, and each begins where the one before ended."""
    phases = sorted((s for s in spans.values() if s.parent_id == generation.span_id), key=lambda span: span.start)
    assert [span.name for span in phases] == expected
    ends = [generation.start, *(span.end for span in phases)]
    assert [span.start for span in phases] == ends[:-1]
    assert ends == sorted(ends)
    assert ends[-1] <= generation.end


@pytest.mark.parametrize("stream", [False, True])
def test_a_requests_spans(http: httpx.Client, collector: Collector, stream: bool) -> None:
    trace, begun = Trace(), time.time_ns()
    answer = http.post(CHAT, json=body(stream=stream), headers=trace.headers)
    assert answer.status_code == 200
    spans = trace.spans(collector)
    root, generation = spans[ROUTE], spans["chat echo@1"]
    assert (root.parent_id, root.kind) == (trace.parent_id, SERVER)
    assert (generation.parent_id, generation.kind) == (root.span_id, INTERNAL)
    check_phases(spans, generation, PHASES)
    assert begun <= root.start <= generation.start + 1_000_000
    assert generation.end <= root.end + 1_000_000 <= time.time_ns() + 1_000_000
    assert spans["decode"].end - spans["decode"].start >= 5 * 2_000_000, "six tokens, 2 ms apart"
    assert root.attributes == {"http.request.method": "POST", "http.route": CHAT, "http.response.status_code": 200}
    told = generation.attributes
    assert told["penstock.request_id"] == answer.headers["x-request-id"]
    assert (told["penstock.account"], told["penstock.version"], told["penstock.stream"]) == ("default", "1", stream)
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (len(CANARY), 6)
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert told["penstock.key"]
    assert not any(span.is_error for span in spans.values())


def test_without_a_trace_of_the_clients(http: httpx.Client, collector: Collector) -> None:
    request_id = http.post(CHAT, json=body()).headers["x-request-id"]
    (generation,) = collector.wait_for(lambda span: span.attributes.get("penstock.request_id") == request_id)
    (root,) = collector.wait_for(lambda span: span.span_id == generation.parent_id)
    assert (root.name, root.parent_id) == (ROUTE, "")
    assert collector.resource["service.name"] == "penstock"


def test_a_client_that_wants_no_trace(http: httpx.Client, collector: Collector) -> None:
    unwanted, wanted = Trace(flags="00"), Trace()
    for trace in (unwanted, wanted):
        http.post(CHAT, json=body(), headers=trace.headers).raise_for_status()
    wanted.spans(collector)
    assert not [span for span in collector.spans if span.trace_id == unwanted.trace_id]


def test_a_refused_one_has_no_more_than_its_answer(http: httpx.Client, collector: Collector) -> None:
    trace = Trace()
    assert http.post(CHAT, json=body("no-such-model"), headers=trace.headers).status_code == 404
    (root,) = trace.spans(collector).values()
    assert root.attributes["http.response.status_code"] == 404
    assert root.attributes["error.type"] == "model_not_found"


def test_what_clients_invent_is_not_told(http: httpx.Client, collector: Collector) -> None:
    trace = Trace()
    http.request("PROPFIND", f"/v1/{CANARY}", headers=trace.headers)
    (root,) = trace.spans(collector, "_OTHER").values()
    assert "http.route" not in root.attributes


def test_one_whose_client_left(http: httpx.Client, collector: Collector) -> None:
    trace = Trace()
    with http.stream("POST", CHAT, json=body("slow", stream=True, max_tokens=5000), headers=trace.headers) as answer:
        next(answer.iter_lines())
    spans = trace.spans(collector)
    generation = spans["chat slow@1"]
    assert generation.attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert not generation.is_error
    check_phases(spans, generation, PHASES)


def test_one_whose_client_left_before_an_answer(http: httpx.Client, collector: Collector) -> None:
    trace = Trace()
    with pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=body("slow", max_tokens=5000), headers=trace.headers, timeout=0.5)
    root = trace.spans(collector)[ROUTE]
    assert root.attributes["error.type"] == "client_left"
    assert "http.response.status_code" not in root.attributes


def test_requests_of_a_websocket(server: PenstockProcess, collector: Collector) -> None:
    trace = Trace()
    headers = {"Authorization": f"Bearer {API_KEY}"} | trace.headers
    with connect(server.websocket_url, additional_headers=headers) as socket:
        socket.send(json.dumps(body()))
        while not json.loads(socket.recv())["choices"][0]["finish_reason"]:
            pass
        spans = trace.spans(collector, "chat echo@1")
    generation = spans["chat echo@1"]
    assert (generation.parent_id, generation.kind) == (trace.parent_id, SERVER)
    check_phases(spans, generation, PHASES)


def test_one_whose_engine_died(server: PenstockProcess, http: httpx.Client, collector: Collector) -> None:
    trace = Trace()
    request = body(max_tokens=5000, stream=True)
    with http.stream("POST", CHAT, json=request, headers=trace.headers) as answer:
        lines = answer.iter_lines()
        next(lines)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        assert "[DONE]" not in "\n".join(lines)
    spans = trace.spans(collector)
    generation = spans["chat echo@1"]
    (event,) = generation.events
    assert (event.name, event.attributes["outcome"]) == ("failover", "no_replica")
    assert generation.is_error
    assert generation.attributes["error.type"] == "engine_failed"
    check_phases(spans, generation, PHASES)
    server.wait_for_metric("penstock_worker_restarts_total", 2)
    server.wait_for_metric("penstock_replicas_ready", 2)


def test_no_text_and_no_key_leaves(http: httpx.Client, collector: Collector) -> None:
    """After all of the above. The canary is in every prompt, in a path, and here in what else clients write."""
    trace = Trace()
    headers = trace.headers | {"x-request-id": HEADER, "user-agent": HEADER}
    answer = http.post(f"{CHAT}?{CANARY}", json=body(user=CANARY, metadata={CANARY: CANARY}), headers=headers)
    trace.spans(collector)
    text = answer.json()["choices"][0]["message"]["content"]
    assert len(collector.spans) > 20
    for secret in (CANARY, HEADER, API_KEY, text):
        assert secret.encode() not in collector.raw


def test_an_endpoint_that_is_away_costs_spans_alone(
    server: PenstockProcess, http: httpx.Client, collector: Collector
) -> None:
    """The last test: the collector is gone."""
    collector.stop()
    for _ in range(200):
        http.post(CHAT, json=body(max_tokens=1)).raise_for_status()
    assert server.stop(timeout=30) == 0
    assert CANARY not in server.log.read_text()
