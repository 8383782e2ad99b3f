"""Logs: one line a batch, facts by name, never what an event carries."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from eventstream import EventSpec, jobs, send_event, send_events
from eventstream.relay import relay_all
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)

Targets = dict[str, RecordingTarget]


@pytest.fixture
def structured() -> Iterator[io.StringIO]:
    """Log as a project does that has structlog render the standard library's records."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.ExtraAdder(),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logger = logging.getLogger("eventstream")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_structlog_gets_the_facts_by_name(
    targets: Targets, structured: io.StringIO
) -> None:
    del targets["b"]
    send_events([EventSpec("orders", "message", "secret") for _ in range(100)])

    jobs.republish("default")

    batch, sweep = lines(structured)
    assert batch["event"].startswith("Published 100 events of partition")  # type: ignore[attr-defined]
    assert batch["target"] == "a"
    assert (batch["event_count"], batch["first"], batch["last"]) == (100, 1, 100)
    assert (sweep["task"], sweep["database"]) == ("republish", "default")
    assert "secret" not in structured.getvalue()


def test_failures_and_dead_letters_name_ids_and_no_data(
    targets: Targets, structured: io.StringIO
) -> None:
    targets["a"].poison = {'"secret"'}
    targets["b"].is_down = True
    send_event("orders", "message", "secret")
    send_event("orders", "message", "other")

    relay_all("default")

    found = lines(structured)
    dead = next(line for line in found if line["level"] == "error")
    failed = next(line for line in found if line["level"] == "warning")
    assert (dead["channel"], dead["event_id"], dead["target"]) == ("orders", 1, "a")
    assert (failed["target"], failed["attempts"]) == ("b", 1)
    assert failed["error"] == "b is down"
    assert "secret" not in structured.getvalue()


def test_plain_logs_say_the_same_in_words(
    targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    targets["b"].is_down = True
    send_event("orders", "message", 1)

    with caplog.at_level(logging.INFO, "eventstream"):
        relay_all("default")

    texts = [record.getMessage() for record in caplog.records]
    assert any(text.startswith("Published 1 event of partition") for text in texts)
    assert any("to b failed (1 in a row), again in" in text for text in texts)
    assert not any(record.exc_info for record in caplog.records)
