"""The outbox's tables. Who writes what: docs/architecture.md."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from eventstream.instants import InstantField


class EventKind(models.IntegerChoices):
    """What a row of the outbox is."""

    EVENT = 0, "event"
    KICK = 1, "permission withdrawn"


class Event(models.Model):
    """One event, or one kick. Appended by senders, numbered once, deleted by prune.

    `position` (its place in the partition) is NULL until the relay numbers it; `eid` (its
    id in the channel) is given together with it. A kick has a position and never an eid.
    There is no foreign key to Channel: it would make senders and relay wait for each other.
    """

    id = models.BigAutoField(primary_key=True)
    partition = models.PositiveSmallIntegerField()
    kind = models.PositiveSmallIntegerField(
        choices=EventKind.choices, default=EventKind.EVENT
    )
    created = InstantField(db_default=Now())
    position = models.BigIntegerField(null=True, editable=False)
    eid = models.BigIntegerField("event id", null=True, editable=False)
    channel = models.CharField(max_length=255)
    type = models.CharField(max_length=255)
    data = models.TextField(
        help_text="The text that clients receive; of a kick, the user."
    )
    skip_users = models.TextField(
        default="",
        blank=True,
        help_text="User ids, with a comma before and after each.",
    )
    idempotency_key = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001  NULLs are not unique, "" would be

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["partition", "position"], name="eventstream_event_position"
            ),
            models.UniqueConstraint(
                fields=["channel", "eid"], name="eventstream_event_eid"
            ),
            models.UniqueConstraint(
                fields=["channel", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="eventstream_event_key",
            ),
        ]
        indexes = [
            models.Index(
                fields=["partition", "id"],
                condition=Q(position__isnull=True),
                name="eventstream_unnumbered",
            ),
            models.Index(
                fields=["partition", "position"],
                condition=Q(kind=EventKind.KICK),
                name="eventstream_kicks",
            ),
        ]
        permissions = [
            ("publish_event", "Can publish undelivered events and dead letters"),
            ("give_up_event", "Can give up events for a target"),
        ]

    def __str__(self) -> str:
        return f"{self.channel}:{self.eid if self.eid is not None else 'unnumbered'}"


class UndeliveredEvent(Event):
    """An event that some target has not accepted: a page of the admin, no table."""

    class Meta:
        proxy = True
        default_permissions = ()


class Channel(models.Model):
    """The last event id of a channel. Written only while numbering, never deleted.

    Deleting a row would make the ids of the channel begin again at 1, and clients that
    hold a higher one would silently miss events.
    """

    name = models.CharField(primary_key=True, max_length=255)
    partition = models.PositiveSmallIntegerField()
    last_eid = models.BigIntegerField("last event id", default=0)

    def __str__(self) -> str:
        return self.name


class Partition(models.Model):
    """The last position of a partition; the row is the numbering lock."""

    number = models.PositiveSmallIntegerField(primary_key=True)
    last_position = models.BigIntegerField(default=0)
    start_eid = models.BigIntegerField(
        db_default=0,
        help_text="Ids of new channels follow this: above 0 after readers were reset.",
    )

    def __str__(self) -> str:
        return str(self.number)


class Cursor(models.Model):
    """How far one target has accepted one partition, and who is at work on it."""

    partition = models.PositiveSmallIntegerField()
    target = models.CharField(max_length=191)
    watermark = models.BigIntegerField(
        default=0, help_text="The last position that the target has accepted."
    )
    lease_token = models.CharField(max_length=32, default="", blank=True)
    lease_until = InstantField(null=True, blank=True)
    attempts = models.PositiveIntegerField(
        default=0, help_text="Failures since the last success."
    )
    next_attempt = InstantField(null=True, blank=True)
    failing_since = InstantField(null=True, blank=True)
    confirmed_at = InstantField(null=True, blank=True)
    last_error = models.TextField(default="", blank=True)
    # Counted where the fact is written, so that every process sees the same figures.
    confirmed_count = models.BigIntegerField(
        db_default=0, help_text="Events that the target has accepted so far."
    )
    failure_count = models.BigIntegerField(
        db_default=0, help_text="Attempts that have failed so far."
    )
    refused_count = models.BigIntegerField(
        db_default=0, help_text="Events that the target has refused for good so far."
    )
    latency = models.DurationField(
        null=True,
        blank=True,
        help_text="From writing to confirming, of the first event of the last batch.",
    )

    class Meta:
        verbose_name = "delivery"  # what operators call it
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(
                fields=["partition", "target"], name="eventstream_cursor_target"
            )
        ]

    def __str__(self) -> str:
        return f"{self.target} / {self.partition}"

    @property
    def fails_alone(self) -> bool:
        """Whether the target has taken other things since this partition began to fail."""
        if self.failing_since is None or self.confirmed_at is None:
            return False
        return self.confirmed_at > self.failing_since


class PausedTarget(models.Model):
    """A target that an operator has paused: nothing is published to it. Written by pausing.

    Its watermarks stay, so that it can go on from there. It holds up pruning no longer
    than one that fails: after the retention, its readers get a stream-reset.
    """

    name = models.CharField(primary_key=True, max_length=191)
    since = InstantField(db_default=Now())
    reason = models.TextField(default="", blank=True)

    class Meta:
        verbose_name = "target"  # the admin shows every target under this model
        default_permissions = ("view",)
        permissions = [("pause_target", "Can pause and resume targets")]

    def __str__(self) -> str:
        return self.name

    def describe(self) -> str:
        """Return since when the target is paused, and why, in words."""
        since = timezone.localtime(self.since).strftime("%Y-%m-%d %H:%M:%S")
        text = f"{self.name} is paused since {since}"
        return f"{text}: {self.reason}" if self.reason else text


class DeadLetter(models.Model):
    """An event that a target refused for good; its readers get it from the log."""

    event_id = models.BigIntegerField()
    partition = models.PositiveSmallIntegerField()
    position = models.BigIntegerField()
    channel = models.CharField(max_length=255)
    eid = models.BigIntegerField("event id", null=True)
    target = models.CharField(max_length=191)
    error = models.TextField()
    created = InstantField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["event_id", "target"], name="eventstream_deadletter_event"
            )
        ]
        indexes = [
            models.Index(
                fields=["partition", "position"], name="eventstream_deadletter_pos"
            )
        ]

    def __str__(self) -> str:
        return f"{self.channel}:{self.eid} / {self.target}"


class Job(models.Model):
    """When a periodic job last succeeded: a missing beat is visible, and two do no harm."""

    REPUBLISH = "republish"
    PRUNE = "prune"
    FAILED = "failed"
    """What the result of a run begins with that has not finished."""

    name = models.CharField(primary_key=True, max_length=32)
    lease_until = InstantField(null=True, blank=True)
    started_at = InstantField(null=True, blank=True)
    finished_at = InstantField(null=True, blank=True)
    result = models.TextField(default="", blank=True)

    def __str__(self) -> str:
        return self.name

    @property
    def has_failed(self) -> bool:
        """Whether its last run came to nothing."""
        return self.result.startswith(self.FAILED)


class Holder(models.Model):
    """A process that holds streams, as it last reported: how many readers there are."""

    name = models.CharField(primary_key=True, max_length=191)
    stream_count = models.PositiveIntegerField(default=0)
    channel_count = models.PositiveIntegerField(default=0)
    channels = models.JSONField(
        null=True, help_text="Readers of the channels that have the most."
    )
    seen_at = InstantField(db_default=Now())

    def __str__(self) -> str:
        return self.name


class Sample(models.Model):
    """What status found in one minute. Written by the sweep, read by series.py."""

    minute = InstantField(primary_key=True)
    event_count = models.BigIntegerField(help_text="Events written so far.")
    oldest_seconds = models.FloatField(null=True)
    reader_count = models.PositiveIntegerField(null=True)
    targets = models.JSONField(default=dict)

    class Meta:
        verbose_name_plural = "overview"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.minute.isoformat()
