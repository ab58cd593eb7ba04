"""Spans of launches that have ended, for whoever collects traces; nothing of OpenTelemetry is imported for nobody."""

from __future__ import annotations

from typing import Protocol

from aircell.daemon.record import Sandbox
from aircell.errors import InvalidSpec


class Tracer(Protocol):
    """Where spans go."""

    def trace(self, sandbox: Sandbox, traceparent: str) -> None:
        """Tells of a launch that has ended, below the span ``traceparent`` unless that is empty.

        Never waits, whatever the collector does.
        """

    def stop(self) -> None:
        """Sends what has not been sent yet, for a few seconds."""


class _Nobody:
    def trace(self, sandbox: Sandbox, traceparent: str) -> None:
        return

    def stop(self) -> None:
        return


def start(endpoint: str | None, node: str) -> Tracer:
    """The tracer that sends spans of this node to ``endpoint``. Raises InvalidSpec when OpenTelemetry is missing."""
    if endpoint is None:
        return _Nobody()
    try:
        from aircell.daemon.spans import Spans
    except ImportError as error:
        raise InvalidSpec(
            f"tracing.endpoint is set, but OpenTelemetry cannot be imported: {error}.",
            hint="pip install 'aircell[otel]'",
        ) from error
    return Spans(endpoint, node)
