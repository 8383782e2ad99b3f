"""The health of the installation as the pages show it: status's facts, with buttons."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib.admin.utils import quote
from django.db import DatabaseError
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.safestring import SafeString

from eventstream import conf
from eventstream.admin.base import alias
from eventstream.status import (
    COUNT_LIMIT,
    Finding,
    HolderStatus,
    Level,
    Status,
    TargetStatus,
    get_status,
)
from eventstream.words import describe_count, describe_seconds

GRIP = "GRIP proxy"


@dataclass(frozen=True)
class Button:
    """A way to a confirmation page."""

    label: str
    url: str


@dataclass(frozen=True)
class FindingItem:
    """A finding, and what the user may press about it."""

    finding: Finding
    buttons: list[Button]


@dataclass(frozen=True)
class Health:
    """One look at the installation, for one user.

    Attributes:
        status: The facts.
        headline: One sentence: whether events arrive.
        findings: What is wrong, the worst first.
        is_asked: Whether broker, workers, bus and proxies were asked, too.
    """

    status: Status
    headline: str
    findings: list[FindingItem]
    is_asked: bool


@dataclass(frozen=True)
class Part:
    """One part of the installation, in words.

    Attributes:
        name: Which.
        level: "ok", "warning", "error", or "" if it is not known or there is none.
        text: How it is.
        hint: What to do, if anything.
        url: Its own page.
    """

    name: str
    level: str
    text: str
    hint: str = ""
    url: str = ""


def look(request: HttpRequest, *, ask: bool = False) -> Health:
    """Find out how the installation is. `ask` may take seconds if something hangs."""
    status = with_others(get_status(alias(), ask=ask))
    targets = {target.name: target for target in status.targets}
    items = []
    for finding in status.findings:
        target = targets.get(finding.subject)
        buttons = list(target_buttons(request, target)) if target else []
        items.append(FindingItem(finding, buttons))
    return Health(status, headline(status), items, ask)


def with_others(status: Status) -> Status:
    """Add what is wrong with the outboxes that the admin does not show."""
    others = [name for name in conf.get_options().databases if name != status.using]
    findings = [*status.findings, *(found for u in others for found in _judge(u))]
    findings.sort(key=lambda finding: -finding.level.rank)
    level = findings[0].level if findings else Level.OK
    return dataclasses.replace(status, findings=findings, level=level)


def _judge(using: str) -> Iterator[Finding]:
    subject = f"outbox {using!r}"
    try:
        status = get_status(using)
    except DatabaseError:
        text = "Its database does not answer, or is not migrated."
        hint = "`python manage.py eventstream doctor`."
        yield Finding(Level.ERROR, subject, text, hint)
    else:
        if status.findings:
            hint = "`python manage.py eventstream status`: these pages show another."
            yield Finding(status.level, subject, status.summary, hint)


def headline(status: Status) -> str:
    """Say in one sentence whether events arrive."""
    count = status.undelivered_count
    if not count:
        is_only = len(conf.get_options().databases) == 1
        which = "" if is_only else f" of {status.using!r}"
        return f"Every event{which} has reached every target."
    events = f"{describe_count(count, 'event')} {'has' if count == 1 else 'have'}"
    if not status.findings:
        return f"{events} not reached every target yet; nothing is late."
    text = f"{events} not reached every target"
    if status.oldest_seconds is not None:
        text += f", the oldest for {describe_seconds(status.oldest_seconds)}"
    return f"{text}."


def target_buttons(request: HttpRequest, target: TargetStatus) -> Iterator[Button]:
    """Yield what the user may do with a target."""
    may_publish = request.user.has_perm("eventstream.publish_event")
    may_pause = request.user.has_perm("eventstream.pause_target")
    if may_publish and target.is_configured and target.state != "paused":
        yield _button(request, target, "publish", "Publish now")
    if may_pause and target.state == "paused":
        yield _button(request, target, "resume", "Resume")
    elif may_pause and target.is_configured:
        yield _button(request, target, "pause", "Pause")


def _button(
    request: HttpRequest, target: TargetStatus, action: str, label: str
) -> Button:
    url = reverse(
        "admin:eventstream_pausedtarget_act",
        current_app=getattr(request, "current_app", None),
    )
    return Button(
        label, f"{url}?{urlencode({'action': action, 'target': target.name})}"
    )


def render_health(request: HttpRequest, health: Health) -> SafeString:
    """Return the panel at the top of the pages."""
    context: dict[str, Any] = {"health": health}
    return render_to_string("admin/eventstream/status.html", context, request)


def render_parts(request: HttpRequest, health: Health) -> SafeString:
    """Return the figures and the table of the parts."""
    status = health.status
    letters = status.dead_letter_count
    reader_count, reader_words = _readers(status)
    is_many = letters > COUNT_LIMIT
    context: dict[str, Any] = {
        "status": status,
        "dead_letters": f"over {COUNT_LIMIT:,}" if is_many else f"{letters:,}",
        "reader_count": reader_count,
        "reader_words": reader_words,
        "parts": list(_parts(request, health)),
    }
    return render_to_string("admin/eventstream/parts.html", context, request)


def _readers(status: Status) -> tuple[str, str]:
    """Return how many readers there are, and which of them are counted."""
    proxies = [t for t in status.targets if t.kind == GRIP and t.is_configured]
    counts = [t.reader_count for t in proxies if t.reader_count is not None]
    left = len(proxies) - len(counts)
    words = "held by web processes and proxies" if counts else "held by web processes"
    if left:
        those = describe_count(left, "proxy", "proxies")
        words += f"; those of {those} are not counted"
    if not status.holders and not counts:
        return "—", words if left else "no web process has reported any"
    return f"{status.reader_count + sum(counts):,}", words


def _parts(request: HttpRequest, health: Health) -> Iterator[Part]:
    """Yield worker, broker, sweep, prune, bus, each proxy, and who holds readers."""
    status = health.status
    findings = {item.finding.subject: item.finding for item in health.findings}
    unknown = "Not asked yet." if not health.is_asked else "Not known."

    def part(subject: str, name: str, text: str, level: str = "ok") -> Part:
        finding = findings.get(subject)
        if finding is not None:
            return Part(name, finding.level, finding.text, finding.hint)
        return Part(name, level, text)

    wake_ups = status.wake_ups
    if wake_ups.broker:
        count = wake_ups.worker_count
        text = unknown
        if count is not None:
            takes = "takes" if count == 1 else "take"
            text = f"{describe_count(count, 'worker')} {takes} tasks from {wake_ups.queue!r}."
        yield part("worker", "Worker", text, "" if count is None else "ok")
        waiting = wake_ups.waiting_count
        text = f"{wake_ups.broker} answers."
        if waiting:
            verb = "waits" if waiting == 1 else "wait"
            text += f" {describe_count(waiting, 'task')} {verb}."
        if health.is_asked:
            yield part("broker", "Broker", text)
        else:
            yield part("broker", "Broker", unknown, "")
    else:
        text = f"None: {wake_ups.name} publishing, in the process that sends."
        yield Part("Worker", "", text)
    runner = "beat" if wake_ups.start_beat else "relay"
    for job, subject in zip(status.jobs, ("sweep", "prune"), strict=True):
        if job.state == "running":
            text = "Running now."
        elif job.state == "new":
            text = "Has never run yet: it is not due."
        elif job.age_seconds is None:
            text = "Has never run."
        else:
            text = f"Ran {describe_seconds(job.age_seconds)} ago: {job.result}."
        found = part(subject, f"{subject.capitalize()}, by {runner}", text, job.level)
        if job.state in ("late", "never") and not (found.hint or wake_ups.start_beat):
            # No finding: where there is no target, no event waits for a sweep.
            hint = (
                "Keep `python manage.py eventstream relay` running: it prunes as well, and "
                "writes the points below."
            )
            found = dataclasses.replace(found, hint=hint)
        yield found
    for target in status.targets:
        if target.is_configured:
            name = "Bus" if target.kind == "bus" else f"Proxy {target.name}"
            found = part(target.name, name, _target_words(target))
            hint = found.hint or _counting_hint(target)
            url = target_url(request, target.name)
            yield dataclasses.replace(found, hint=hint, url=url)
    for holder in status.holders:
        words = (
            f"{describe_count(holder.stream_count, 'reader')} of "
            f"{describe_count(holder.channel_count, 'channel')}, "
            f"as of {describe_seconds(_age(status, holder))} ago."
        )
        yield Part(f"Web process {holder.name}", "ok", words)


def _target_words(target: TargetStatus) -> str:
    if target.answer == "":
        words = "Answers."
    elif target.state == "idle":
        words = "Nothing has been published there yet."
    else:
        words = "Accepts what is published."
    if target.latency_seconds is not None:
        words += f" Latest delay {describe_seconds(target.latency_seconds)}."
    if target.reader_count is not None:
        words += f" {describe_count(target.reader_count, 'reader')}."
    elif target.kind == GRIP:
        words += " How many readers it has is not known."
    return words


def _counting_hint(target: TargetStatus) -> str:
    """Say how a proxy's readers come to be known: it does not tell unless it is asked."""
    if target.kind != GRIP or target.reader_count is not None:
        return ""
    uri = target.name.removeprefix("grip:")
    if uri in {address.rstrip("/") for address in conf.get_options().proxy_metrics}:
        return (
            f"The sweep asks EVENTSTREAM_PROXY_METRICS[{uri!r}] once a minute, and has had "
            "no answer: see that the address is reached from the workers."
        )
    return (
        "To count its readers, set `prometheus_port` in pushpin.conf and name the page in "
        f"the settings: `EVENTSTREAM_PROXY_METRICS = {{{uri!r}: 'http://…:7998/metrics'}}`."
    )


def _age(status: Status, holder: HolderStatus) -> float:
    return max(0.0, (status.checked_at - holder.seen_at).total_seconds())


def target_url(request: HttpRequest, name: str) -> str:
    """Return the address of a target's page."""
    return reverse(
        "admin:eventstream_pausedtarget_change",
        args=[quote(name)],
        current_app=getattr(request, "current_app", None),
    )
