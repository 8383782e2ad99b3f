"""Metrics of several web and worker processes, added up."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import free_port, wait_for
from tests.support.sse import Stream
from tests.support.stack import running

PREFORK = ["-P", "prefork", "-c", "2", "-Q", "celery,eventstream", "-l", "INFO"]


def read(port: int, path: str = "/metrics") -> dict[object, float]:
    """Return the sums over all labels, by name, and by name and outcome."""
    address = f"http://127.0.0.1:{port}{path}"
    with urllib.request.urlopen(address, timeout=10) as response:
        text = response.read().decode()
    found: dict[object, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for name in (sample.name, (sample.name, sample.labels.get("outcome"))):
                found[name] = found.get(name, 0) + sample.value
    return found


@pytest.mark.timeout(180)
def test_processes_add_up(tmp_path: Path) -> None:
    port, worker_port = free_port(), free_port()
    env = {
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        "ES_SET": json.dumps({"EVENTSTREAM_TASKS_METRICS_PORT": worker_port}),
    }
    with running(worker=False, env=env) as stack:
        stack.start_web(port=port)
        stack.start_worker(PREFORK)
        urls = [
            f"http://127.0.0.1:{p}/events/?channel=x" for p in (stack.web_port, port)
        ]
        with Stream(urls[0]).open() as first, Stream(urls[1]).open() as second:
            for _ in range(30):
                stack.send("x", 1)
            first.take(30)
            second.take(30)

            wait_for(
                lambda: (
                    read(worker_port).get("eventstream_confirm_seconds_count") == 30
                ),
                "every confirmation is counted, by whichever process",
                timeout=30,
            )
            # The web processes report what they have sampled every 15 seconds.
            wait_for(
                lambda: read(port).get("eventstream_delivery_seconds_count", 0) > 0,
                "deliveries are sampled",
                timeout=60,
            )
        one, other = read(stack.web_port), read(port)

    for shown in (one, other):  # whichever process answers
        assert shown["eventstream_events_total"] == 30
        assert shown["eventstream_confirmed_total"] == 30
        assert shown["eventstream_confirm_seconds_count"] == 30
        wake_ups = "eventstream_wake_ups_total"
        # As many as were asked for; those by which a relay goes on come besides.
        assert shown[wake_ups] - shown.get((wake_ups, "handed-on"), 0) == 30
        assert shown["eventstream_publish_attempts_total"] > 0
    assert 0 < one["eventstream_delivery_seconds_sum"] < 60
