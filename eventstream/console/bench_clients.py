"""bench-proxy with clients: events from send_event to many readers, each one counted."""

from __future__ import annotations

import json
import resource
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.contrib.auth import get_user_model
from django.core.management.base import CommandError

from eventstream.api import send_events
from eventstream.console.crowd import OPEN_AT_A_TIME, OPEN_EVERY, Crowd
from eventstream.console.screen import Screen
from eventstream.specs import EventSpec, check_channel
from eventstream.status import Level
from eventstream.tokens import make_subscribe_token
from eventstream.words import describe_count

BENCH_CHANNEL = "eventstream-bench"
OPEN_SECONDS = 20.0
"""To wait, beyond what opening takes, for every stream to be open."""
TICK_SECONDS = 0.01
MOST_AT_A_TIME = 200
SPARE_FILES = 64
BUSY_SHARE = 0.6
"""Of a processor, which the clients share with whoever sends."""


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        url: Where browsers open streams: the proxy's address.
        client_count, event_count: How many.
        rate: Events a second; 0 for as many as can be written.
        size: Characters that each event's data has besides its number.
        channel: On which.
        patience: Seconds to wait for what is missing after the last event was sent.
        user: Name of the user whom the clients are; "" for nobody.
    """

    url: str
    client_count: int
    event_count: int
    rate: float
    size: int
    channel: str
    patience: float
    user: str


@dataclass(frozen=True)
class Result:
    """What came of it; seconds and counts, as `--json` prints them."""

    client_count: int
    open_count: int
    event_count: int
    send_seconds: float
    events_per_second: float
    deliveries_due: int
    deliveries: int
    missing: int
    duplicates: int
    disorders: int
    resets: int
    reopened: int
    deliveries_per_second: float
    median_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    client_cpu_share: float
    error: str


def measure_clients(screen: Screen, plan: Plan, *, as_json: bool) -> int:
    """Open the clients, send, wait, report; 2 if anything was missing, else 0."""
    _check(plan)
    run = uuid.uuid4().hex[:12]
    query = urlencode({"channel": plan.channel})
    headers = {}
    if plan.user:
        headers["Authorization"] = f"Bearer {_token(plan)}"
    join = "&" if urlsplit(plan.url).query else "?"
    crowd = Crowd(f"{plan.url}{join}{query}", plan.client_count, run, headers)
    crowd.start()
    try:
        result = _run(screen, plan, crowd, run)
    finally:
        crowd.stop()
    if as_json:
        screen.line(json.dumps(asdict(result)))
    else:
        _show(screen, plan, result)
    return 2 if _is_bad(result) else 0


def _check(plan: Plan) -> None:
    check_channel(plan.channel)
    parts = urlsplit(plan.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CommandError(
            f"--url is {plan.url!r}: give the address of the streams as browsers have it, "
            "such as http://127.0.0.1:7999/events/."
        )
    for name, value in (("clients", plan.client_count), ("events", plan.event_count)):
        if value < 1:
            raise CommandError(f"--{name} is {value}: it must be 1 or more.")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = plan.client_count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise CommandError(
                f"{plan.client_count:,} clients need {needed:,} open files, and this "
                f"machine allows {hard:,}: `ulimit -n`, or fewer --clients."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _token(plan: Plan) -> str:
    model = get_user_model()
    try:
        user: Any = model._default_manager.get_by_natural_key(plan.user)
    except model.DoesNotExist as error:
        raise CommandError(f"There is no user {plan.user!r}.") from error
    return make_subscribe_token(user, [plan.channel], lifetime=3600)


def _run(screen: Screen, plan: Plan, crowd: Crowd, run: str) -> Result:
    tally, count = crowd.tally, plan.client_count
    opening = count / OPEN_AT_A_TIME * OPEN_EVERY
    with screen.progress("Opening streams", count) as advance:
        _follow(
            lambda: tally.open_count,
            count,
            opening + OPEN_SECONDS,
            advance,
            is_hopeless=lambda: not tally.open_count and tally.refused_count >= count,
        )
    if not tally.open_count:
        raise CommandError(
            f"No stream could be opened at {plan.url}: {tally.error or 'no answer'}. If "
            f"nobody may read {plan.channel!r}, name a --channel, or a --user who may."
        )
    clients = tally.open_count
    due = plan.event_count * clients
    started = time.monotonic()
    with screen.progress("Deliveries", due) as advance:
        seen = 0
        for _ in _send(plan, run):
            advance(tally.received_count - seen)
            seen = tally.received_count
        send_seconds = time.monotonic() - started
        _follow(lambda: tally.received_count, due, plan.patience, advance, seen=seen)
    seconds = max(tally.last_at - started, send_seconds, 0.001)
    crowd.stop()
    latencies = sorted(tally.seconds)
    return Result(
        client_count=count,
        open_count=clients,
        event_count=plan.event_count,
        send_seconds=round(send_seconds, 3),
        events_per_second=round(plan.event_count / send_seconds, 1),
        deliveries_due=due,
        deliveries=tally.received_count,
        missing=max(0, due - tally.received_count),
        duplicates=tally.duplicate_count,
        disorders=tally.disorder_count,
        resets=tally.reset_count,
        reopened=tally.reopen_count,
        deliveries_per_second=round(tally.received_count / seconds, 1),
        median_ms=_quantile(latencies, 0.5),
        p90_ms=_quantile(latencies, 0.9),
        p99_ms=_quantile(latencies, 0.99),
        max_ms=_quantile(latencies, 1.0),
        client_cpu_share=round(crowd.cpu_seconds / seconds, 2),
        error=tally.error if tally.reopen_count or clients < count else "",
    )


def _follow(
    figure: Callable[[], int],
    wanted: int,
    seconds: float,
    advance: Callable[[int], None],
    *,
    seen: int = 0,
    is_hopeless: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until a figure is what is wanted, for so long; tell the bar."""
    deadline = time.monotonic() + seconds
    while True:
        now = figure()
        advance(now - seen)
        seen = now
        if now >= wanted or is_hopeless() or time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _send(plan: Plan, run: str) -> Iterator[int]:
    """Send the events at the rate asked for, those of a moment in one transaction."""
    started = time.monotonic()
    filling = "x" * plan.size
    sent = 0
    while sent < plan.event_count:
        due = plan.event_count
        if plan.rate:
            due = min(due, 1 + int((time.monotonic() - started) * plan.rate))
        some = range(sent + 1, min(due, sent + MOST_AT_A_TIME) + 1)
        if some:
            now = time.time_ns()
            send_events(
                EventSpec(
                    plan.channel,
                    "message",
                    {"run": run, "n": number, "t": now, "x": filling},
                )
                for number in some
            )
            sent += len(some)
            yield sent
        else:
            time.sleep(TICK_SECONDS)


def _quantile(latencies: Sequence[float], share: float) -> float:
    if not latencies:
        return 0.0
    place = min(len(latencies) - 1, int(len(latencies) * share))
    return round(latencies[place] * 1000, 1)


def _is_bad(result: Result) -> bool:
    return bool(
        result.missing
        or result.duplicates
        or result.disorders
        or result.open_count < result.client_count
    )


def _show(screen: Screen, plan: Plan, result: Result) -> None:
    clients = describe_count(result.open_count, "client")
    events = describe_count(result.event_count, "event")
    screen.line(f"{events} to {clients} on {plan.channel}, through {plan.url}")
    rows: list[list[object]] = [
        ["events/s sent", f"{result.events_per_second:,.0f}"],
        ["deliveries/s", f"{result.deliveries_per_second:,.0f}"],
        ["deliveries", f"{result.deliveries:,} of {result.deliveries_due:,}"],
        ["missing", f"{result.missing:,}"],
        ["twice", f"{result.duplicates:,}"],
        ["out of order", f"{result.disorders:,}"],
        ["latency, median", f"{result.median_ms:,.1f} ms"],
        ["latency, 90 %", f"{result.p90_ms:,.1f} ms"],
        ["latency, 99 %", f"{result.p99_ms:,.1f} ms"],
        ["latency, longest", f"{result.max_ms:,.1f} ms"],
        ["streams opened again", f"{result.reopened:,}"],
        ["stream-resets", f"{result.resets:,}"],
        ["clients' share of a processor", f"{result.client_cpu_share:.0%}"],
    ]
    screen.table(["what", "value"], rows)
    if result.open_count < result.client_count:
        left = describe_count(result.client_count - result.open_count, "stream")
        screen.finding(
            Level.ERROR,
            "clients",
            f"{left} could not be opened: {result.error or 'no answer in time'}.",
            "See client_maxconn of the proxy, and EVENTSTREAM_STREAMS_PER_USER.",
        )
    if result.missing:
        screen.finding(
            Level.ERROR,
            "events",
            f"{describe_count(result.missing, 'delivery', 'deliveries')} did not come "
            f"within {plan.patience:g} s of the last event.",
            "`python manage.py eventstream status` says whether they were published.",
        )
    elif result.client_cpu_share > BUSY_SHARE:
        screen.finding(
            Level.WARNING,
            "clients",
            f"reading took {result.client_cpu_share:.0%} of a processor: the clients may "
            "have been what was measured.",
            "Have fewer --clients or a lower --rate, or run it on another machine.",
        )
