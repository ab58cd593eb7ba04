"""Launches as OpenTelemetry spans, sent by OTLP over HTTP. Imported only where they are asked for.

Spans are made when a launch has ended, from its events; a thread of OpenTelemetry's own sends them. It keeps as many as
its queue holds (2048) while the collector is away, and drops the rest.
"""

from __future__ import annotations

from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aircell.backends.base import LABEL_PREFIX
from aircell.daemon.record import Sandbox
from aircell.daemon.steps import steps

SEND_SECONDS = 3.0
"""For one attempt; a stop may take two."""
DELAY = 1.0
"""Seconds after which a span is sent at the latest."""


class Spans:
    """A span for each launch, with one below it for each of its steps."""

    def __init__(self, endpoint: str, node: str) -> None:
        resource = Resource.create({SERVICE_NAME: "aircelld", SERVICE_INSTANCE_ID: node})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=DELAY * 1000))
        self._tracer = self._provider.get_tracer("aircell", version("aircell"))

    def trace(self, sandbox: Sandbox, traceparent: str) -> None:
        """See ``aircell.daemon.tracing.Tracer``."""
        found = steps(sandbox.events)
        above = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        start, end = found[0].start, found[-1].end
        whole = self._tracer.start_span(
            "aircell.launch", above, attributes=attributes(sandbox), start_time=_nanoseconds(start)
        )
        if sandbox.error:
            kind = type(sandbox.error).__name__
            whole.set_status(trace.StatusCode.ERROR, f"{kind}: {sandbox.error.message}")
            whole.set_attribute("error.type", kind)
        within = trace.set_span_in_context(whole)
        for step in found:
            span = self._tracer.start_span(f"aircell.{step.name}", within, start_time=_nanoseconds(step.start))
            span.end(_nanoseconds(step.end))
        whole.end(_nanoseconds(end))

    def stop(self) -> None:
        """See ``aircell.daemon.tracing.Tracer``."""
        self._provider.shutdown()


def attributes(sandbox: Sandbox) -> dict[str, str | int | bool]:
    """What the span of a launch tells of it."""
    record, exit = sandbox.record, sandbox.exit
    ours = {
        name.removeprefix(LABEL_PREFIX): text for name, text in record.labels.items() if name.startswith(LABEL_PREFIX)
    }
    ended = {} if exit is None else {"exit.code": exit.code, "exit.signal": exit.signal, "oom_killed": exit.oom_killed}
    known = {
        **ours,
        "made_as": record.made_as,
        "kind": record.kind,
        "backend": record.backend,
        "image": record.spec.image,
        "digest": record.digest,
        "shape": sandbox.shape[:12],
        **ended,
    }
    return {f"aircell.{name}": value for name, value in known.items() if value is not None and value != ""}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
