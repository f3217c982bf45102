"""Spans of requests, sent to an OTLP endpoint from a thread of their own.

What is sent says how long, how much, who and with what end: never a prompt, an answer, a key, or a path that a client
made up. Names of attributes are OpenTelemetry's where it has them:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ and .../http/http-spans/.

The library reads what else its own variables say: OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT, _COMPRESSION, _CERTIFICATE,
OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from engines.types import FinishReason
from server import logs
from server.job import Job
from server.store.records import UsageRecord
from server.tracing.timeline import Timeline

CLOSE_TIMEOUT = 3.0  # seconds in which the last spans can leave
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
ENDINGS = frozenset(FinishReason) - {FinishReason.ERROR}
_propagator = TraceContextTextMapPropagator()

__all__ = ["Context", "Tracer"]


class Tracer:
    """Of one gateway. The queue before its thread is bounded: an endpoint that is away costs spans, and nobody time."""

    def __init__(self, endpoint: str) -> None:
        ours = Resource({"service.name": "penstock", "service.version": version("penstock")})
        resource = ours.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("penstock", version("penstock"))

    async def close(self) -> None:
        """What is waiting is sent, unless that takes too long."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_TIMEOUT)

    @staticmethod
    def context_of(headers: Mapping[str, str]) -> Context:
        """What a client says of its own trace, in `traceparent`: https://www.w3.org/TR/trace-context/"""
        return _propagator.extract(headers, Context())

    def begin_http(self, method: str, parent: Context) -> tuple[Span, Context]:
        """The span of a request, which its caller ends, and the context of what happens within."""
        span = self._tracer.start_span(method, parent, SpanKind.SERVER)
        return span, set_span_in_context(span, parent)

    def request_ended(self, record: UsageRecord, job: Job, timeline: Timeline) -> None:
        """Never raises: the request has ended well, whatever becomes of its spans."""
        try:
            self._tell(record, job, timeline)
        except Exception:
            logs.unexpected("a request's spans could not be made")

    def _tell(self, record: UsageRecord, job: Job, timeline: Timeline) -> None:
        offset = time.time() - time.monotonic()

        def wall(moment: float) -> int:
            return round(1e9 * (moment + offset))

        caller = job.caller
        operation = OPERATIONS.get(record.endpoint) or record.endpoint.rsplit("/", 1)[-1]
        span = self._tracer.start_span(
            f"{operation} {job.deployment.id}",
            caller.trace if caller.trace is not None else Context(),
            SpanKind.SERVER if "websocket" in caller.features else SpanKind.INTERNAL,
            _attributes(operation, record, job),
            start_time=wall(timeline.arrival),
        )
        if span.is_recording():
            _tell_failures(span, record, timeline, wall)
            within = set_span_in_context(span, Context())
            for phase in timeline.phases():
                child = self._tracer.start_span(phase.name, within, start_time=wall(phase.start))
                child.end(wall(phase.end))
        span.end(wall(timeline.ended))


def _tell_failures(span: Span, record: UsageRecord, timeline: Timeline, wall: Callable[[float], int]) -> None:
    """Of engines, and of the whole request."""
    for failure in timeline.failures:
        told: dict[str, AttributeValue] = {
            "choice": failure.choice,
            "outcome": failure.outcome,
            "tokens": failure.num_tokens,
        }
        span.add_event("failover", told, wall(failure.at))
    if record.outcome not in ENDINGS:
        span.set_attribute("error.type", record.outcome)
        span.set_status(StatusCode.ERROR, record.outcome)


def _attributes(operation: str, record: UsageRecord, job: Job) -> dict[str, AttributeValue]:
    principal = job.caller.principal
    known: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "penstock",
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": job.deployment.id,
        "gen_ai.request.max_tokens": max(prompt.sampling.max_tokens for prompt in job.prompts),
        "gen_ai.request.choice.count": job.num_choices,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.response.finish_reasons": (record.outcome,) if record.outcome in ENDINGS else None,
        "penstock.request_id": record.request_id,
        "penstock.version": record.version,
        "penstock.account": principal.account_name,
        "penstock.key": record.key_id,
        "penstock.features": tuple(sorted(record.features)),
        "penstock.stream": job.streamed,
        "penstock.cache": record.cache,
        "penstock.queue_ms": record.queue_ms,
        "penstock.first_token_ms": record.first_token_ms,
    }
    return {name: value for name, value in known.items() if value is not None}
