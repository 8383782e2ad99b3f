"""The trace of whoever sends goes on to the publish: the extra `otel`.

A request's trace travels with the wake-up to the worker's task, and each publish is a span
of it. Events that found a wake-up under way are published by that one, so in the trace of
whoever came first; what the sweep publishes begins a trace of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager


class Tracing:
    """Traces nothing: opentelemetry is not installed."""

    def headers(self) -> dict[str, str]:
        """Return what carries the current trace, to go with a message."""
        return {}

    def fields(self) -> Collection[str]:
        """Return the names of headers that carry a trace."""
        return ()

    def going_on(self, headers: Mapping[str, str]) -> AbstractContextManager[object]:
        """Go on with the trace that a message carries, unless one is under way."""
        return contextlib.nullcontext()

    def publishing(
        self, target: str, partition: int, count: int
    ) -> AbstractContextManager[object]:
        """Be one attempt to publish so many items."""
        return contextlib.nullcontext()


if importlib.util.find_spec("opentelemetry") is None:
    active = Tracing()
else:
    from opentelemetry import context, propagate, trace

    _tracer = trace.get_tracer("eventstream")

    class OpenTelemetry(Tracing):
        """Through the API only; without an SDK in the project, it does nothing either."""

        def headers(self) -> dict[str, str]:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            return carrier

        def fields(self) -> Collection[str]:
            return propagate.get_global_textmap().fields

        @contextlib.contextmanager
        def going_on(self, headers: Mapping[str, str]) -> Iterator[None]:
            if trace.get_current_span().get_span_context().is_valid:
                yield  # Celery's own instrumentation has taken it from the message
                return
            token = context.attach(propagate.extract(headers))
            try:
                yield
            finally:
                context.detach(token)

        def publishing(
            self, target: str, partition: int, count: int
        ) -> AbstractContextManager[object]:
            return _tracer.start_as_current_span(
                "eventstream.publish",
                kind=trace.SpanKind.PRODUCER,
                attributes={
                    "messaging.system": "eventstream",
                    "messaging.operation.type": "send",
                    "messaging.destination.name": target,
                    "messaging.destination.partition.id": str(partition),
                    "messaging.batch.message_count": count,
                },
            )

    active = OpenTelemetry()
