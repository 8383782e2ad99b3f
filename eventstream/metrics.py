"""Metrics for Prometheus: the extra `metrics`.

    urlpatterns += [path("metrics", eventstream.metrics.view)]   # not for the public

Two sources. What all processes share is read from the database when somebody asks, so it
is right however many there are. What only a process sees (latencies, attempts, readers put
back on the log) is counted there; set PROMETHEUS_MULTIPROC_DIR where several processes
answer behind one address, as prometheus-client has it.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from eventstream import conf, instruments
from eventstream.models import Job
from eventstream.status import Status, get_status
from eventstream.transactions import outside_transactions

logger = logging.getLogger(__name__)

STATES = ("up", "idle", "behind", "failing", "paused")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)


class _BatchHistogram(Histogram):
    """Takes many values at once, each of which took longer than its event's encoding."""

    def observe_all(self, values: Sequence[float]) -> None:
        """Do what observe() does with each; below 0 is 0."""
        ordered = sorted(max(0.0, value) for value in values)
        self._sum.inc(sum(ordered))
        first = 0
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            end = bisect_right(ordered, bound, lo=first)
            if end > first:
                bucket.inc(end - first)
            first = end


_attempts = Counter(
    "eventstream_publish_attempts",
    "Attempts to publish a batch to a target, by what came of them.",
    ["target", "outcome"],
)
_publish_seconds = Histogram(
    "eventstream_publish_seconds",
    "How long a target took to answer.",
    ["target"],
)
_confirm_seconds = _BatchHistogram(
    "eventstream_confirm_seconds",
    "From writing an event to its confirmation by a target.",
    ["target"],
    buckets=_BUCKETS,
)
_delivery_seconds = Histogram(
    "eventstream_delivery_seconds",
    "From writing an event to handing it to a client of this web process; a sample.",
    buckets=_BUCKETS,
)
_wake_ups = Counter(
    "eventstream_wake_ups", "Wake-ups of a worker, by what came of them.", ["outcome"]
)
_circuit = Gauge(
    "eventstream_circuit_open_until_seconds",
    "No wake-up is tried until then (Unix time), as one has failed.",
    multiprocess_mode="max",
)
_catch_ups = Counter(
    "eventstream_catch_ups", "Pages of the log sent to readers.", ["holder"]
)
_resets = Counter("eventstream_resets", "stream-resets sent to readers.", ["holder"])
_overflows = Counter(
    "eventstream_overflows",
    "Live readers that fell behind the tail in memory and were put back on the log.",
)
_kicks = Counter("eventstream_kicks", "Withdrawn permissions that a hub heard of.")


class PrometheusInstruments(instruments.Instruments):
    """Counts in prometheus-client's default registry."""

    is_enabled = True

    def attempt(self, target: str, outcome: str, seconds: float) -> None:
        _attempts.labels(target, outcome).inc()
        _publish_seconds.labels(target).observe(seconds)

    def confirmed(self, target: str, ages: Sequence[float]) -> None:
        _confirm_seconds.labels(target).observe_all(ages)

    def wake_up(self, outcome: str) -> None:
        _wake_ups.labels(outcome).inc()

    def circuit_open_until(self, instant: float) -> None:
        _circuit.set(instant)

    def catch_up(self, holder: str) -> None:
        _catch_ups.labels(holder).inc()

    def reset(self, holder: str) -> None:
        _resets.labels(holder).inc()

    def overflow(self) -> None:
        _overflows.inc()

    def kick(self) -> None:
        _kicks.inc()

    def delivered(self, seconds: float) -> None:
        _delivery_seconds.observe(seconds)


def install() -> None:
    """Begin to count in this process. Called when the app is ready."""
    instruments.install(PrometheusInstruments())


class DatabaseCollector(Collector):
    """What the outboxes say, at the moment of asking. Costs a dozen short queries."""

    def collect(self) -> Iterable[Any]:
        up = GaugeMetricFamily(
            "eventstream_up",
            "Whether the outbox's database answers.",
            labels=["database"],
        )
        states = []
        for using in conf.get_options().databases:
            try:
                states.append(get_status(using))
            except DatabaseError:
                up.add_metric([using], 0)
            else:
                up.add_metric([using], 1)
        yield up
        yield from _of_outboxes(states)
        yield from _of_targets(states)
        yield from _of_jobs(states)


def _of_outboxes(states: list[Status]) -> Iterator[Any]:
    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"eventstream_{name}", text, labels=["database"])

    sent = CounterMetricFamily(
        "eventstream_events", "Events written.", labels=["database"]
    )
    numbered = CounterMetricFamily(
        "eventstream_numbered",
        "Events that have been given an id.",
        labels=["database"],
    )
    undelivered = gauge("undelivered", "Events that some target has not accepted.")
    oldest = gauge(
        "oldest_undelivered_seconds", "Age of the first of these, 0 if none."
    )
    letters = gauge("dead_letters", "Dead letters stored, 10,001 for more.")
    health = gauge(
        "health", "0 well, 1 warnings, 2 errors: as `eventstream status --offline`."
    )
    readers = GaugeMetricFamily(
        "eventstream_readers", "Streams held.", labels=["database", "holder"]
    )
    for status in states:
        names = [status.using]
        sent.add_metric(names, status.event_count)
        numbered.add_metric(names, status.event_count - status.unnumbered_count)
        undelivered.add_metric(names, status.undelivered_count)
        oldest.add_metric(names, status.oldest_seconds or 0)
        letters.add_metric(names, status.dead_letter_count)
        health.add_metric(names, status.level.rank)
        readers.add_metric([status.using, "hub"], status.reader_count)
        for target in status.targets:
            if target.reader_count is not None:
                readers.add_metric([status.using, target.name], target.reader_count)
    yield from (sent, numbered, undelivered, oldest, letters, health, readers)


def _of_targets(states: list[Status]) -> Iterator[Any]:
    labels = ["database", "target"]

    def counter(name: str, text: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"eventstream_{name}", text, labels=labels)

    confirmed = counter("confirmed", "Events that the target has accepted.")
    failures = counter("failures", "Attempts that have failed.")
    refused = counter("refused", "Events that the target has refused for good.")
    waiting = GaugeMetricFamily(
        "eventstream_waiting", "Events that the target has not accepted.", labels=labels
    )
    oldest = GaugeMetricFamily(
        "eventstream_oldest_unconfirmed_seconds",
        "Age of the first event that the target has not accepted, 0 if none.",
        labels=labels,
    )
    success = GaugeMetricFamily(
        "eventstream_last_success_timestamp_seconds",
        "When the target last accepted something.",
        labels=labels,
    )
    state = GaugeMetricFamily(
        "eventstream_target_state",
        "1 for the state it is in.",
        labels=[*labels, "state"],
    )
    for status in states:
        for target in status.targets:
            if not target.is_configured:
                continue
            names = [status.using, target.name]
            confirmed.add_metric(names, target.confirmed_count)
            failures.add_metric(names, target.failure_count)
            refused.add_metric(names, target.refused_count)
            waiting.add_metric(names, target.waiting_count)
            oldest.add_metric(names, target.oldest_seconds or 0)
            if target.confirmed_at is not None:
                success.add_metric(names, target.confirmed_at.timestamp())
            for name in STATES:
                state.add_metric([*names, name], float(name == target.state))
    yield from (confirmed, failures, refused, waiting, oldest, success, state)


def _of_jobs(states: list[Status]) -> Iterator[Any]:
    last_run = GaugeMetricFamily(
        "eventstream_last_run_timestamp_seconds",
        "When sweep and prune last succeeded; 0 for never.",
        labels=["database", "task"],
    )
    for status in states:
        for job in status.jobs:
            task = "sweep" if job.name == Job.REPUBLISH else job.name
            at = job.finished_at
            last_run.add_metric([status.using, task], at.timestamp() if at else 0)
    yield last_run


def collect() -> bytes:
    """Return all metrics of this address, in Prometheus' text format."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        text = generate_latest(registry)
    else:
        text = generate_latest(REGISTRY)
    shared = CollectorRegistry()
    shared.register(DatabaseCollector())
    try:
        return text + generate_latest(shared)
    except ImproperlyConfigured as error:
        logger.error("Metrics of the database cannot be shown: %s", error)
        return text


@never_cache
@outside_transactions
@require_safe
def view(request: HttpRequest) -> HttpResponse:
    """Answer Prometheus. Keep it from the public: it names targets and counts."""
    return HttpResponse(collect(), content_type=CONTENT_TYPE_LATEST)
