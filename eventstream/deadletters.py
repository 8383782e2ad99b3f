"""Dead letters: what a target refused for good, or an operator gave up for it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from django.db import transaction

from eventstream.cursors import count_refused, ensure_cursors, hold_still
from eventstream.exceptions import CannotGiveUpError
from eventstream.models import Cursor, DeadLetter, Event, EventKind
from eventstream.rows import OutboxRow
from eventstream.signals import event_dead_lettered
from eventstream.storage import get_storage
from eventstream.targets import get_targets

logger = logging.getLogger(__name__)


def write_letters(
    using: str, partition: int, target: str, rows: Collection[OutboxRow], error: str
) -> None:
    """Make rows dead letters of a target."""
    letters = [
        DeadLetter(
            event_id=row.id,
            partition=partition,
            position=row.position,
            channel=row.channel,
            eid=row.eid,
            target=target,
            error=error,
        )
        for row in rows
    ]
    DeadLetter.objects.using(using).bulk_create(
        letters, ignore_conflicts=True, batch_size=1000
    )
    count_refused(using, partition, target, len(letters))


def tell_of_letters(
    using: str, target: str, rows: Collection[OutboxRow], error: str
) -> None:
    """Tell the application, once they are committed: it may take its time."""
    for event in Event.objects.using(using).filter(pk__in=[row.id for row in rows]):
        event_dead_lettered.send_robust(
            DeadLetter, using=using, target=target, event=event, error=error
        )


def without_given_up(
    using: str, partition: int, target: str, rows: Sequence[OutboxRow]
) -> list[OutboxRow]:
    """Leave out what an operator has given up for this target before its turn."""
    if not rows:
        return []
    letters = DeadLetter.objects.using(using).filter(
        partition=partition,
        position__gte=rows[0].position,
        position__lte=rows[-1].position,
        target=target,
    )
    given_up = set(letters.values_list("position", flat=True))
    return [row for row in rows if row.position not in given_up]


def give_up(using: str, target_name: str, event_id: int, reason: str) -> None:
    """Make an event that waits a dead letter of a target, at an operator's request.

    For an event that its target answers with an error that is not about the event, say a
    500, and that holds up its partition for ever. The target's readers see the gap and
    get the event from the log.

    Args:
        using: Database alias.
        target_name: One of `get_targets()`.
        event_id: The event's primary key.
        reason: What the dead letter is to say.

    Raises:
        CannotGiveUpError: The event is not one that waits for the target, or may be on its
            way there right now.
    """
    if target_name not in get_targets():
        raise CannotGiveUpError(f"{target_name} is not in the settings.")
    event = Event.objects.using(using).filter(pk=event_id).first()
    if event is None:
        raise CannotGiveUpError(f"Event {event_id} is not stored (any more).")
    if event.kind == EventKind.KICK:
        raise CannotGiveUpError(
            f"{event.channel}: a withdrawn permission is never given up, or the user "
            "would read on."
        )
    storage = get_storage()
    partition = event.partition
    # The other targets', too: they begin at the head, and are to get what is numbered now.
    ensure_cursors(storage, using, partition)
    if event.position is None:
        storage.number_all(using, partition)
    with transaction.atomic(using=using):
        # What a relay has read it may publish at any moment, and would leave the letter of
        # what was accepted, to be tried again.
        if not hold_still(using, partition, target_name):
            raise CannotGiveUpError(
                f"{event} may be on its way to {target_name} right now: see what comes of "
                "it, and try again."
            )
        row = storage.read_row(using, event_id)
        cursor = Cursor.objects.using(using).get(
            partition=partition, target=target_name
        )
        if row is None or row.position <= cursor.watermark:
            raise CannotGiveUpError(
                f"{event} does not wait for {target_name} any more."
            )
        logger.error("Gave up %s for %s: %s", event, target_name, reason)
        write_letters(using, partition, target_name, [row], reason)
    tell_of_letters(using, target_name, [row], reason)
