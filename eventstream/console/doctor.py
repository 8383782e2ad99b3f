"""doctor: look at every part, say what is wrong and how to mend it."""

from __future__ import annotations

import datetime
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse

from eventstream import conf
from eventstream.api import EventState, send_event
from eventstream.console.crowd import Crowd, Tally
from eventstream.console.screen import Screen
from eventstream.exceptions import EventStreamError
from eventstream.log import database_now
from eventstream.models import Job
from eventstream.redisclients import connect
from eventstream.status import Finding, Level, get_status
from eventstream.targets import get_targets
from eventstream.targets.bus import kick_topic
from eventstream.words import describe_count, describe_seconds

CLOCK_SECONDS = 2.0
ROUND_TRIP_SECONDS = 10.0
ARRIVAL_SECONDS = 5.0
SETTLE_SECONDS = 2.0
"""Seconds that a stream is open before the event is sent. A GRIP proxy asks for more after
one, and passes on no event if that fails."""
DOCTOR_CHANNEL = "eventstream-doctor"
_RUN = uuid.uuid4().hex
"""What tells the events of this process from others'."""


def examine(screen: Screen, *, url: str | None, is_sending: bool) -> int:
    """Run every check; return 0 if all is well, 1 for warnings, 2 for errors."""
    worst = Level.OK
    for finding in _findings(url, is_sending):
        screen.finding(finding.level, finding.subject, finding.text, finding.hint)
        worst = max(worst, finding.level, key=lambda level: level.rank)
    endings = {
        Level.OK: "All is well.",
        Level.WARNING: "It works; see the warnings.",
        Level.ERROR: "Something is broken; see the errors.",
    }
    screen.line(endings[worst], worst)
    return worst.rank


def _findings(url: str | None, is_sending: bool) -> Iterator[Finding]:
    found = list(_check_settings())
    yield from found
    try:
        yield from _check_parts(url, is_sending)
    except ImproperlyConfigured as error:
        # Nothing that follows could ask. What is said already is not said again.
        if all(finding.level is not Level.ERROR for finding in found):
            hint = "`python manage.py check` says more."
            yield Finding(Level.ERROR, "settings", str(error), hint)


def _check_parts(url: str | None, is_sending: bool) -> Iterator[Finding]:
    databases = conf.get_options().databases
    for using in databases:
        found = list(_check_database(using))
        yield from found
        if any(finding.level is Level.ERROR for finding in found):
            return  # nothing that follows could answer
    yield from _check_bus()
    yield from _check_keys()
    for using in databases:
        yield from _check_status(using)
    if url:
        yield from _check_url(url)
    if is_sending:
        with _reading(url) as tally:
            yield from _check_round_trip()
            if url:
                yield from _check_arrival(url, tally)


def _ok(subject: str, text: str) -> Finding:
    return Finding(Level.OK, subject, text, "")


def _check_settings() -> Iterator[Finding]:
    found = False
    for message in checks.run_checks(tags=["eventstream"]):
        if message.is_silenced():
            continue
        found = True
        level = Level.ERROR if message.level >= checks.ERROR else Level.WARNING
        yield Finding(level, "settings", message.msg, str(message.hint or ""))
    if not found:
        names = ", ".join(get_targets()) or "none: streams look at the database"
        yield _ok("settings", f"every one is valid; targets: {names}")


def _check_database(using: str) -> Iterator[Finding]:
    subject = f"database {using!r}"
    started = time.monotonic()
    try:
        now = database_now(using)
    except DatabaseError as error:
        text = f"does not answer: {str(error).strip()}"
        yield Finding(Level.ERROR, subject, text, f"Mend DATABASES[{using!r}].")
        return
    seconds = time.monotonic() - started
    executor = MigrationExecutor(connections[using])
    leaves = [n for n in executor.loader.graph.leaf_nodes() if n[0] == "eventstream"]
    if executor.migration_plan(leaves):
        hint = f"`python manage.py migrate --database {using}`."
        if using == DEFAULT_DB_ALIAS:
            hint = "`python manage.py migrate`."
        yield Finding(Level.ERROR, subject, "is not migrated.", hint)
        return
    vendor = connections[using].display_name
    yield _ok(subject, f"{vendor} answers in {describe_seconds(seconds)}, migrated")
    here = datetime.datetime.now(datetime.UTC)
    skew = (here - now).total_seconds()
    if abs(skew) > CLOCK_SECONDS:
        yield Finding(
            Level.WARNING,
            "clock",
            f"this machine's differs from the database's by {skew:+.1f} s.",
            "Have both keep time (chrony or ntpd): signed links, logs, and what beat asks "
            "workers for go by it. Leases and ages go by the database's alone.",
        )
    else:
        yield _ok("clock", f"within {CLOCK_SECONDS:g} s of the database's")


def _check_bus() -> Iterator[Finding]:
    arguments = conf.redis_arguments()
    if arguments is None:
        return
    topic = f"{conf.get_options().redis_prefix}doctor"
    try:
        with connect(arguments, timeout=2.0) as client, client.pubsub() as pubsub:
            pubsub.subscribe(topic)
            pubsub.get_message(timeout=2.0)
            started = time.monotonic()
            client.publish(topic, b"ping")
            message = pubsub.get_message(timeout=2.0)
            seconds = time.monotonic() - started
            (_, count), *_ = client.pubsub_numsub(kick_topic())
    except (redis.RedisError, OSError) as error:
        yield Finding(
            Level.ERROR,
            "bus",
            f"does not answer: {error}",
            "Start Redis or Valkey, or mend EVENTSTREAM_REDIS. Until then streams look "
            "at the database every "
            f"{conf.get_options().poll_interval:g} s.",
        )
        return
    if message is None or message["data"] != b"ping":
        yield Finding(
            Level.ERROR,
            "bus",
            "takes a message and does not deliver it.",
            "See that EVENTSTREAM_REDIS is not a read replica or a proxy without pub/sub.",
        )
        return
    listening = describe_count(count, "web process", "web processes")
    verb = "listens" if count == 1 else "listen"
    text = f"a message comes back in {describe_seconds(seconds)}; {listening} {verb}"
    yield _ok("bus", text)


def _check_keys() -> Iterator[Finding]:
    """Sign as each proxy does, and have the middleware look at it."""
    proxies = conf.grip_proxies()
    if not proxies:
        return
    from django_grip import GripMiddleware  # noqa: PLC0415  imports requests: slow
    from jwt import encode  # noqa: PLC0415

    for proxy in proxies:
        subject = f"Grip-Sig of {conf.without_credentials(proxy['control_uri'])}"
        key = proxy.get("key")
        if conf.has_public_key(proxy):
            yield _ok(
                subject, "is checked with a public key: --url says whether it is good"
            )
            continue
        if not key:
            yield Finding(
                Level.WARNING,
                subject,
                "the proxy has no key, so nothing shows that a request is the proxy's.",
                "Set sig_key in pushpin.conf and add it: GRIP_URL = 'http://…?key=…'.",
            )
            continue
        claims = {"iss": "pushpin", "exp": int(time.time()) + 60}
        request = HttpRequest()
        request.META["HTTP_GRIP_SIG"] = encode(claims, key, algorithm="HS256")
        seen: list[bool] = []

        def answer(request: HttpRequest, seen: list[bool] = seen) -> HttpResponse:
            grip: Any = request.grip  # type: ignore[attr-defined]
            seen.append(bool(grip.signed))
            return HttpResponse()

        GripMiddleware(answer)(request)
        if seen == [True]:
            yield _ok(subject, "what is signed with its key is accepted here")
        else:
            yield Finding(
                Level.ERROR,
                subject,
                "what is signed with the proxy's key is not accepted here.",
                "GRIP_VERIFY_KEY, or verify_key, must be the key that the proxy signs "
                "with.",
            )


def _check_status(using: str) -> Iterator[Finding]:
    status = get_status(using, ask=True)
    yield from status.findings
    bad = {finding.subject for finding in status.findings}
    wake_ups = status.wake_ups
    if wake_ups.broker and not bad & {"broker", "worker"}:
        text = f"{wake_ups.broker} answers"
        if wake_ups.worker_count is not None:
            workers = describe_count(wake_ups.worker_count, "worker")
            text += f"; {workers} for {wake_ups.queue!r}"
        yield _ok("broker", text)
    for job in status.jobs:
        name = "sweep" if job.name == Job.REPUBLISH else job.name
        # One that is late may be told with the broker, or the worker.
        if name in bad or job.level is not Level.OK or job.age_seconds is None:
            continue
        yield _ok(name, f"ran {describe_seconds(job.age_seconds)} ago: {job.result}")
    for target in status.targets:
        if target.is_configured and target.name not in bad:
            yield _ok(target.name, "takes what is published")


def _check_url(url: str) -> Iterator[Finding]:
    """Ask the site from outside: through the proxy, if there is one."""
    address = url.rstrip("/") + "/health/live"
    try:
        with urllib.request.urlopen(address, timeout=5) as response:  # noqa: S310  the operator's own
            body = json.load(response)
            grip = body["grip"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding(
            Level.ERROR,
            address,
            f"is not answered by eventstream: {error}",
            "Give --url the address under which eventstream.urls is included, as the "
            "browser has it, such as https://example.com/events/.",
        )
        return
    if not conf.grip_proxies():
        yield _ok(address, "answers")
    elif grip == "verified":
        yield _ok(address, "comes through a GRIP proxy, whose signature is good")
    elif grip == "invalid":
        yield Finding(
            Level.ERROR,
            address,
            "comes through a proxy whose signature is not accepted: every stream is "
            "refused or held by the web process.",
            "The sig_key of the proxy and the key of GRIP_URL must be the same.",
        )
    else:
        yield Finding(
            Level.WARNING,
            address,
            "did not come through the GRIP proxy.",
            "Give --url the proxy's address. If it is, set sig_key in pushpin.conf.",
        )


@contextmanager
def _reading(url: str | None) -> Iterator[Tally]:
    """Read a stream of the doctor's channel from outside, as a browser does."""
    if not url:
        yield Tally()
        return
    address = f"{url.rstrip('/')}/?channel={DOCTOR_CHANNEL}"
    crowd = Crowd(address, 1, _RUN, {})
    crowd.start()
    deadline = time.monotonic() + ARRIVAL_SECONDS
    try:
        while not (crowd.tally.open_count or crowd.tally.error):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        time.sleep(SETTLE_SECONDS if crowd.tally.open_count else 0)
        yield crowd.tally
    finally:
        crowd.stop()


def _check_arrival(url: str, tally: Tally) -> Iterator[Finding]:
    """See that the event comes by the stream that was opened before it was sent."""
    if tally.error and not tally.open_count and not tally.error.startswith("{"):
        text = f"none could be opened at {url}: {tally.error}"
        yield Finding(Level.ERROR, "stream", text, "The web process' log says why.")
        return
    if DOCTOR_CHANNEL not in tally.position:
        # Private, of channels of its own, or best-effort: that is the project's to say.
        why = tally.error or f"it has no position in {DOCTOR_CHANNEL}"
        yield _ok("stream", f"none was read at {url}: {why}")
        return
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while not tally.seconds:  # what is noted last, in another thread
        if time.monotonic() > deadline:
            yield Finding(
                Level.ERROR,
                "stream",
                f"the event did not come within {ARRIVAL_SECONDS:g} s by a stream of {url}.",
                "Something in front holds it back, or the GRIP proxy cannot ask for more, "
                "and passes on nothing: see what GET …/next/… is answered in the log of "
                "the web process. It asks by HTTP, without cookies and X-Forwarded-…. Or "
                "GRIP_URL names another server, which accepts whatever is POSTed to it.",
            )
            return
        time.sleep(0.05)
    seconds = describe_seconds(tally.seconds[0])
    yield _ok("stream", f"the event came by one of {url} after {seconds}")


def _check_round_trip() -> Iterator[Finding]:
    started = time.monotonic()
    data = {"run": _RUN, "n": 1, "t": time.time_ns()}
    try:
        sent = send_event(DOCTOR_CHANNEL, "message", data)
    except (EventStreamError, DatabaseError) as error:
        yield Finding(Level.ERROR, "round trip", str(error), "See above.")
        return
    state = sent.state()
    while state not in (EventState.CONFIRMED, EventState.DEAD, EventState.UNSTORED):
        if time.monotonic() - started > ROUND_TRIP_SECONDS:
            yield Finding(
                Level.ERROR,
                "round trip",
                f"an event was not confirmed within {ROUND_TRIP_SECONDS:g} s; it is "
                f"{state.value}.",
                f"`python manage.py eventstream undelivered` says what holds up "
                f"{DOCTOR_CHANNEL}.",
            )
            return
        time.sleep(0.05)
        state = sent.state()
    if state is EventState.DEAD:
        yield Finding(
            Level.ERROR,
            "round trip",
            "a target refused an event for good.",
            "`python manage.py eventstream undelivered --dead` says which, and why.",
        )
        return
    if state is EventState.UNSTORED:
        text = (
            "an event was sent, best effort: without a log nobody knows who received it"
        )
        yield _ok("round trip", text)
        return
    seconds = time.monotonic() - started
    yield _ok("round trip", f"an event was confirmed after {describe_seconds(seconds)}")
