"""From the request through the broker and a worker to the publish: one trace."""

from __future__ import annotations

import re

import pytest

from tests.support.processes import wait_for
from tests.support.stack import running

SEND = """
from django.db import transaction
from opentelemetry import trace
from eventstream import send_event
with trace.get_tracer("tests").start_as_current_span("request") as span:
    with transaction.atomic():
        send_event("traced", "message", "secret")
    print("TRACE", format(span.get_span_context().trace_id, "032x"))
"""


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_trace_goes_through_the_broker_to_the_publish(pool: str) -> None:
    options = ["-P", pool, "-c", "2", "-Q", "celery,eventstream", "-l", "INFO"]
    with running(worker=False, env={"ES_TRACE": "1"}) as stack:
        worker = stack.start_worker(options)
        found = re.search(r"TRACE (\w{32})", stack.run(SEND))
        assert found is not None

        def publish() -> str | None:
            spans = re.findall(
                r'"name": "eventstream.publish".*?"trace_id": "0x(\w+)"',
                worker.output(),
                re.DOTALL,
            )
            return spans[0] if spans else None

        assert wait_for(publish, "the publish is a span") == found[1]
        assert "secret" not in worker.output()
