"""OpenTelemetry traces where the standard `OTEL_*` variables ask for them: numbers and names, never prompts or images.

Names follow the GenAI conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
Nothing of OpenTelemetry is imported here, or needs to be installed, where no variable asks for it.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from server.telemetry.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/responses": "chat", "/v1/completions": "text_completion"}
# W3C's limit for tracestate; what is longer is no trace's context but somebody's attempt.
MAX_HEADER_CHARACTERS = 512


class Tracing:
    """A span for each generating request, its phases as children; the context comes from the client, if it sent one."""

    def __init__(self, provider: "TracerProvider", model: str) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("laid.gateway")
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def begin(self, route: str, headers: Mapping[str, str], record: Record) -> "Span | None":
        """The request's span, and its context among the headers for the engine; None for a route without a model."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        operation = OPERATIONS.get(route)
        if operation is None:
            return None
        carrier = {name: headers.get(name, "")[:MAX_HEADER_CHARACTERS] for name in ("traceparent", "tracestate")}
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": self._model,
                "http.request.method": "POST",
                "http.route": route,
                "laid.request_id": record.request_id,
            },
        )
        self._propagator.inject(record.engine_headers, set_span_in_context(span))
        return span

    def end(self, span: "Span", record: Record, status: int) -> None:
        """Ends the request's span with what became known of it, and adds its phases."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        span.set_attribute("http.response.status_code", status)
        span.set_attributes({name: value for name, value in _numbers(record).items() if value is not None})
        if record.error is not None:
            span.set_attribute("error.type", record.error.value)
            span.set_status(Status(StatusCode.ERROR))
        # Phases are timed by a clock that no adjustment of the time of day disturbs.
        offset = time.time() - time.perf_counter()
        context = set_span_in_context(span)
        for phase, started, ended in record.phases.intervals:
            child = self._tracer.start_span(phase.value, context=context, start_time=_nanoseconds(started + offset))
            child.end(_nanoseconds(ended + offset))
        span.end()

    def close(self) -> None:
        """Sends what is left; blocks until it is sent or given up."""
        self._provider.shutdown()


def make_tracing(model: str, environment: Mapping[str, str]) -> Tracing | None:
    """Tracing as `OTEL_*` variables configure it; None where no endpoint is given or the SDK is disabled.

    Raises:
        ValueError: it is asked for and not installed.
    """
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or not any(environment.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError(
            f"{' or '.join(ENDPOINTS)} asks for traces, which need pip install 'laid[tracing]': {error}"
        ) from error
    name = environment.get("OTEL_SERVICE_NAME", "laid-gateway")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider, model)


def _numbers(record: Record) -> dict[str, int | None]:
    return {
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "laid.image_tokens": record.image_tokens,
        "laid.images": record.num_images,
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
