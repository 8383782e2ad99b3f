"""The trace of a request goes on through the task to the publish."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import transaction
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pytest_django import Settings

from eventstream import send_event, tracing
from eventstream.dispatch import InlineDispatcher
from eventstream.relay import relay_all, relay_partition
from eventstream.rows import partition_of
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)

Targets = dict[str, RecordingTarget]
_exporter = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def provider() -> None:
    """One for the process: the API takes no second."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_exporter))
    trace.set_tracer_provider(provider)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    _exporter.clear()
    yield _exporter
    _exporter.clear()


def request() -> int:
    """Send an event as a traced request does, and return the trace."""
    with trace.get_tracer("tests").start_as_current_span("GET /order") as span:
        with transaction.atomic():
            send_event("orders", "message", "secret")
        return span.get_span_context().trace_id


def publishes(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    found = exporter.get_finished_spans()
    return [span for span in found if span.name == "eventstream.publish"]


def test_inline_publish_is_in_the_trace_of_the_request(
    targets: Targets, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstream.dispatch.get_targets", lambda: targets)
    inline = InlineDispatcher()
    monkeypatch.setattr("eventstream.api.get_dispatcher", lambda: inline)

    trace_id = request()

    found = publishes(spans)
    assert [span.context.trace_id for span in found] == [trace_id, trace_id]
    names = [dict(span.attributes or {}) for span in found]
    assert [name["messaging.destination.name"] for name in names] == ["a", "b"]
    assert "secret" not in repr([span.to_json() for span in found])


def test_publish_of_a_batch_in_flight_is_in_the_trace(
    targets: Targets, spans: InMemorySpanExporter, settings: Settings
) -> None:
    settings.EVENTSTREAM_BATCH_SIZE = 1  # each is a full one
    send_event("orders", "message", 1)
    send_event("orders", "message", 2)

    with trace.get_tracer("tests").start_as_current_span("relay") as span:
        relay_partition("default", partition_of("orders"), "a")

    trace_id = span.get_span_context().trace_id
    found = publishes(spans)
    assert [span.context.trace_id for span in found] == [trace_id, trace_id]


def test_trace_that_a_message_carries_is_gone_on_with(
    spans: InMemorySpanExporter,
) -> None:
    with trace.get_tracer("tests").start_as_current_span("request") as span:
        headers = tracing.active.headers()

    assert set(headers) <= set(tracing.active.fields())
    with tracing.active.going_on(headers), tracing.active.publishing("a", 1, 1):
        pass

    (publish,) = publishes(spans)
    assert publish.parent is not None
    assert publish.parent.span_id == span.get_span_context().span_id


def test_failed_publish_is_an_error_of_its_span(
    targets: Targets, spans: InMemorySpanExporter
) -> None:
    targets["a"].is_down = True
    request()

    relay_all("default")

    by_target = {
        dict(span.attributes or {})["messaging.destination.name"]: span
        for span in publishes(spans)
    }
    assert by_target["a"].status.status_code is StatusCode.ERROR
    assert by_target["b"].status.status_code is StatusCode.UNSET


def test_trace_that_is_under_way_is_kept(spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("tests").start_as_current_span("first"):
        headers = tracing.active.headers()
    tracer = trace.get_tracer("tests")
    with (
        tracer.start_as_current_span("second") as second,
        tracing.active.going_on(headers),
    ):
        assert trace.get_current_span() is second
