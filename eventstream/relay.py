"""Empty the outbox: lease → number → publish → confirm.

Task, sweep, admin and command all end in `relay_partition`; there is no other road to the
wire for a stored event.

A relay that is behind numbers the next batch while a thread publishes this one.

What is safe under a crash at any line: the ids of a batch are committed before any of it
is published, and confirmed after all of it was accepted. So a crash repeats events under
the same ids, which proxies and readers drop, and never gives an id to two events. The
lease keeps two relays from doing the same work; nothing depends on it.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from django.db import InterfaceError, OperationalError, connections

from eventstream import conf, instruments, tracing
from eventstream.channelmanager import may_read
from eventstream.cursors import Lease, LeaseLostError, Taken, ensure_cursors
from eventstream.deadletters import (
    tell_of_letters,
    without_given_up,
    write_letters,
)
from eventstream.exceptions import (
    PublishError,
    PublishRejectedError,
    PublishUnavailableError,
)
from eventstream.inflight import Call, InFlight
from eventstream.instruments import failure_kind
from eventstream.models import Cursor, PausedTarget
from eventstream.numbering import FEW
from eventstream.rows import Batch, OutboxRow, join_users, split_users
from eventstream.signals import events_confirmed
from eventstream.storage import DjangoModelStorage, get_storage
from eventstream.targets import get_targets
from eventstream.targets.base import CallSize, Item, Target
from eventstream.targets.grip import MAX_KICKED
from eventstream.words import describe_count

logger = logging.getLogger(__name__)

MAX_REST = 0.004
"""Most seconds that a relay rests between two small batches, from the third on: what it adds
to an event's latency at most, and only while events come faster than they can be relayed."""
READ_CALLS = 4
"""How many calls' worth of bytes is read at once: what a relay has in memory, once or, while
it is behind, twice."""
TURN = 1.0
"""Seconds after which a sweep goes on with the next partition, and comes back to this one: one
whose events come faster than they can be relayed would never let it go."""
LONGEST_SWEEP = 8.0
"""Seconds after which a sweep comes back to none: the next one does."""
NO_TARGET = ""
"""The target of a wake-up that only numbers: where nothing is configured to publish to."""


class Outcome(enum.Enum):
    """How a call of relay_partition ended."""

    DONE = "done"
    MORE = "more"  # its turn is over; whoever comes next goes on
    BUSY = "busy"  # another relay has the lease, and will look again after releasing it
    WAITING = "waiting"  # it failed a moment ago; not due yet
    FAILED = "failed"
    PAUSED = "paused"  # by an operator; what was sent has been numbered
    UNKNOWN = "unknown"  # the target is not in the settings


@dataclass(frozen=True)
class Report:
    """What a call of relay_partition did.

    Attributes:
        outcome: How it ended.
        event_count: Rows confirmed; those that the target refused for good count too.
        error: The target's answer, if it failed.
        has_recovered: The target had been failing and takes events again: whatever waits
            for it in other partitions is due now.
    """

    outcome: Outcome
    event_count: int = 0
    error: str = ""
    has_recovered: bool = False


class WakeFlag:
    """Says, while raised, that a relay is going to look: senders need not wake one.

    This one says nothing to nobody; a dispatcher that coalesces wake-ups has its own.
    """

    def lower(self) -> None:
        """From now on senders wake. Called before the last look, and if there is none."""

    def keep_up(self) -> None:
        """There will be another look, after lowering it again."""

    def watch(self) -> None:
        """From now on hear of what senders want, until it is lowered."""

    def more_comes(self) -> bool:
        """Wait a moment for what senders want next, and say whether there is something."""
        return False

    def is_over(self) -> bool:
        """Say whether it has been at work for so long that others are to have their turn."""
        return False

    def hand_on(self) -> bool:
        """Have another relay go on, after those; say whether one will."""
        return False


class _Turn(WakeFlag):
    """A sweep's: it comes back to whatever has more."""

    def __init__(self) -> None:
        self._until = time.monotonic() + TURN

    def is_over(self) -> bool:
        return time.monotonic() >= self._until

    def hand_on(self) -> bool:
        return True


def relay_partition(
    using: str,
    partition: int,
    target_name: str,
    *,
    force: bool = False,
    flag: WakeFlag | None = None,
) -> Report:
    """Number and publish whatever is waiting in a partition, for one target.

    Looks again after releasing the lease: a wake-up that came in between found the lease
    taken and went away. No transaction is open while the target is being talked to.

    Args:
        using: Database alias.
        partition: Its number.
        target_name: One of `get_targets()`, or NO_TARGET to number only.
        force: Try now even if the last failure asked to wait.
        flag: What keeps senders from waking another relay. Lowered before the last look:
            an event that found it raised is seen by that look.
    """
    storage = get_storage()
    flag = flag or WakeFlag()
    if target_name == NO_TARGET:
        flag.lower()
        ensure_cursors(storage, using, partition)  # there may be paused targets
        return Report(Outcome.DONE, storage.number_all(using, partition))
    target = get_targets().get(target_name)
    if target is None:
        flag.lower()  # a worker with newer settings may know it
        return Report(Outcome.UNKNOWN, error=f"{target_name} is not in the settings")
    return _Relay(storage, using, partition, target, flag).run(force=force)


def relay_all(
    using: str, *, ends: tuple[type[Exception], ...] = ()
) -> dict[tuple[int, str], Report]:
    """Relay every partition that has work and is due. What the sweep calls.

    One that fails in a way of its own, as its rows are locked or its target raises what it
    likes, is passed over and logged. One that has more after its turn has another when all
    have had theirs.

    Args:
        using: Database alias.
        ends: What is not passed over, such as a worker's time limit.
    """
    reports: dict[tuple[int, str], Report] = {}
    until = time.monotonic() + LONGEST_SWEEP
    while True:
        has_more = False
        for pair in pending(using):
            before = reports.get(pair, Report(Outcome.DONE))
            if before.outcome is Outcome.FAILED:
                continue
            report = _relay_in_turn(using, *pair, ends=ends)
            count = before.event_count + report.event_count
            reports[pair] = replace(report, event_count=count)
            # Those that waited for the target to be back have had their turn already.
            has_more |= report.outcome is Outcome.MORE or report.has_recovered
        if not has_more or time.monotonic() >= until:
            return reports


def _relay_in_turn(
    using: str, partition: int, name: str, *, ends: tuple[type[Exception], ...]
) -> Report:
    try:
        return relay_partition(using, partition, name, flag=_Turn())
    except ends:
        raise
    except Exception as error:
        if not connections[using].is_usable():
            raise
        logger.exception("Relaying partition %s to %s failed", partition, name)
        return Report(Outcome.FAILED, error=f"{type(error).__name__}: {error}")


def pending(using: str) -> list[tuple[int, str]]:
    """Return the (partition, target) pairs with something unnumbered or unconfirmed.

    Without the targets that are paused.
    """
    storage = get_storage()
    paused = PausedTarget.objects.using(using).values_list("name", flat=True)
    names = [name for name in get_targets() if name not in set(paused)]
    unnumbered = set(storage.unnumbered_partitions(using))
    if not names:
        return [(partition, NO_TARGET) for partition in sorted(unnumbered)]
    heads = storage.heads(using)
    rows = Cursor.objects.using(using).filter(target__in=names)
    marks = {
        (partition, name): mark
        for partition, name, mark in rows.values_list(
            "partition", "target", "watermark"
        )
    }
    found = []
    for partition in sorted({*heads, *unnumbered}):
        for name in names:
            # Without a cursor the target is new: it starts at the head.
            mark = marks.get((partition, name))
            is_behind = mark is not None and mark < heads.get(partition, 0)
            if partition in unnumbered or is_behind:
                found.append((partition, name))
    return found


class _Relay:
    """One call's work on one (partition, target)."""

    def __init__(
        self,
        storage: DjangoModelStorage,
        using: str,
        partition: int,
        target: Target,
        flag: WakeFlag,
    ) -> None:
        self._flag = flag
        self._storage = storage
        self._using = using
        self._partition = partition
        self._target = target
        self._lease = Lease(storage, using, partition, target.name)
        self._event_count = 0
        self._flight: InFlight | None = None

    def run(self, *, force: bool) -> Report:
        try:
            return self._run(force=force)
        finally:
            self._flag.lower()

    def _run(self, *, force: bool) -> Report:
        taken = self._take(force=force)
        while taken is not None:
            try:
                report = self._work(taken)
            except BaseException:
                # A worker's time limit or shutdown, or the database's: hand the rest on at
                # once. That it cannot be given back is no news then.
                with suppress(OperationalError, InterfaceError):
                    self._release()
                raise
            if report is not None:
                return report
            taken = self._take(force=force)
        return self._not_acquired(force=force)

    def _work(self, taken: Taken) -> Report | None:
        """Do what there is to do with the lease; None if there is or may be more."""
        try:
            self._drain(taken)
        except PublishError as error:
            self._record_failure(error)
            return self._report(Outcome.FAILED, str(error))
        except LeaseLostError:
            logger.warning(
                "Lost the lease of %s / %s", self._target.name, self._partition
            )
            return None
        self._release()
        self._flag.lower()
        if not self._lease.has_work():
            return self._report(Outcome.DONE)
        if self._flag.is_over() and self._flag.hand_on():
            return self._report(Outcome.MORE)
        self._flag.keep_up()
        return None

    def _take(self, *, force: bool) -> Taken | None:
        """Take the lease. If somebody has it, they look after any event of until now.

        So that it is true of events that saw the flag raised, it is lowered before the
        last try: whoever has the lease then has not looked for the last time yet.
        """
        few = _few()
        taken = self._lease.take(force=force, few=few)
        if taken is None:
            self._flag.lower()
            ensure_cursors(self._storage, self._using, self._partition)
            taken = self._lease.take(force=force, few=few)
        return taken

    def _release(self) -> None:
        """Give the lease back, by a new connection if this one was cut.

        It would keep away whoever tries again at once, which can do so by a new one.
        """
        try:
            self._lease.release()
        except (OperationalError, InterfaceError):
            connection = connections[self._using]
            if connection.in_atomic_block:
                raise
            connection.close()
            self._lease.release()

    def _facts(self, **facts: object) -> dict[str, object]:
        """Return a log line's facts by name, for formatters that keep them apart."""
        return {
            "database": self._using,
            "partition": self._partition,
            "target": self._target.name,
            **facts,
        }

    def _report(self, outcome: Outcome, error: str = "") -> Report:
        return Report(outcome, self._event_count, error, self._lease.has_recovered)

    def _not_acquired(self, *, force: bool) -> Report:
        pause = self._lease.pause()
        if pause is not None:
            # Ids are given all the same: readers of the log and other targets need them.
            self._storage.number_all(self._using, self._partition)
            return self._report(Outcome.PAUSED, pause.describe())
        failing = None if force else self._lease.waits_for()
        if failing is None:
            return self._report(Outcome.BUSY)
        if self._lease.has_work():
            self._lease.count_as_failing()
        return self._report(Outcome.WAITING, failing.last_error)

    # --- number, publish, confirm

    def _drain(self, taken: Taken) -> None:
        try:
            self._empty(taken)
        finally:
            # The target is this thread's again, and what it is told from now on comes after.
            if self._flight is not None:
                self._flight.stop()
                self._flight = None

    def _empty(self, taken: Taken) -> None:
        options = conf.get_options()
        few = _few()
        watermark = taken.watermark
        if taken.is_backlog:
            watermark = self._publish_backlog(watermark)
        if taken.is_lively:
            self._flag.watch()  # before the look, so that nothing falls between the two
        most = options.batch_size
        limit = most if taken.is_behind else few
        is_steady = False
        while True:
            began = time.monotonic()
            try:
                found = self._storage.number_and_read(
                    self._using,
                    self._partition,
                    after=watermark,
                    limit=limit,
                    limit_bytes=READ_CALLS * options.batch_bytes,
                    target=self._target.name,
                )
            except OperationalError:
                if limit <= few:
                    raise
                # Perhaps a statement's time limit, within which it will never do so many.
                most = limit = few
                continue
            is_full = len(found.rows) == limit
            limit = most if len(found.rows) >= few else few
            was_in_flight = self._flight is not None
            goes_on = self._finish()
            if found.is_paused or (was_in_flight and self._lease.pause()):
                return  # the last look finds out, and numbers the rest
            if found.rows:
                watermark = found.rows[-1].position
                self._flight = self._prepare(found)
                if is_full:  # so there is more
                    self._flight.start()
                    goes_on = True
                else:
                    goes_on = self._finish()
            elif not was_in_flight:
                watermark = self._pass_over_pruned(watermark)
            if not goes_on:
                if not self._flag.more_comes():
                    return
                is_steady = False
                continue
            # Another may have lowered it: one that had the lease before, at its end.
            self._flag.keep_up()
            if self._flag.is_over():
                self._finish()
                return
            self._flag.watch()  # as more came while it was at work
            if is_steady and not is_full:
                # Batches grow while the relay rests for as long as it worked, and the
                # other half of the processor is the sender's.
                time.sleep(min(time.monotonic() - began, MAX_REST))
            is_steady = True  # once more has come, as it does now and then, is not

    def _prepare(self, found: Batch) -> InFlight:
        """Return what was read as what is to be published."""
        rows = found.rows
        if found.has_kicks:
            rows = [ask_again(row, self._lease.keep) for row in rows]
        if found.has_letters:
            rows = self._without_given_up(rows)
        return InFlight(
            _calls(self._target, rows),
            self._attempt,
            position=found.rows[-1].position,
            read_at=found.read_at,
        )

    def _finish(self) -> bool:
        """Confirm what is in flight, call by call, and say whether there is more to do."""
        if self._flight is None:
            return False
        flight, goes_on, watermark = self._flight, False, 0
        for (rows, items), is_accepted in flight:
            if not is_accepted:
                self._publish(rows, items)
            watermark = rows[-1].position
            goes_on = self._confirm(watermark, rows, read_at=flight.read_at)
        if watermark < flight.position:  # the last were given up
            goes_on = self._confirm(flight.position)
        self._flight = None
        return goes_on

    def _without_given_up(self, rows: Sequence[OutboxRow]) -> list[OutboxRow]:
        return without_given_up(self._using, self._partition, self._target.name, rows)

    def _pass_over_pruned(self, watermark: int) -> int:
        """Confirm positions whose rows are gone: pruned while this target was failing.

        The head is read first, so what is numbered meanwhile is never passed over. Returns
        the watermark.
        """
        head = self._storage.last_position(self._using, self._partition)
        found = self._storage.read_batch(
            self._using, self._partition, after=watermark, limit=1, target=""
        )
        if head > watermark and not found.rows:
            self._confirm(head)
            return head
        return watermark

    def _publish_backlog(self, watermark: int) -> int:
        """Publish to a target that is back only the newest event of each channel.

        Its held streams see the gap and read the log. Event by event the proxy would
        hold up each for message_wait, and forget ids that it has seen before.
        """
        options = conf.get_options()
        self._storage.number_all(self._using, self._partition, keep=self._lease.renew)
        head = self._storage.last_position(self._using, self._partition)
        read_at = time.monotonic()
        published: list[OutboxRow] = []
        for newest in self._storage.read_newest(
            self._using, self._partition,
            after=watermark, up_to=head,
            limit=options.batch_size, limit_bytes=READ_CALLS * options.batch_bytes,
            target=self._target.name, keep=self._lease.keep,
        ):  # fmt: skip
            if published and self._lease.pause():
                return watermark  # nothing is confirmed: all of it is due again
            rows = self._without_given_up(newest)
            rows = [ask_again(row, self._lease.keep) for row in rows]
            for batch, items in _calls(self._target, rows):
                self._lease.renew()
                self._publish(batch, items)
            # To be counted: not the data, of which there may be more than there is memory.
            published += [row._replace(data="") for row in rows]
        if head > watermark:
            self._confirm(head, published, read_at=read_at, is_backlog=True)
        return head

    def _publish(self, rows: Sequence[OutboxRow], items: Sequence[Item]) -> None:
        try:
            self._attempt(items)
        except PublishRejectedError as error:
            rejected = self._bisect(rows, error)
            if len(rejected) == len(rows):
                self._check_target(error)
            for row, reason in rejected:
                self._bury(row, reason)

    def _attempt(self, items: Sequence[Item]) -> None:
        """Have the target publish, and count what came of it."""
        started = time.monotonic()
        outcome = "ok"
        try:
            with tracing.active.publishing(
                self._target.name, self._partition, len(items)
            ):
                self._target.publish(items)
        except PublishError as error:
            outcome = failure_kind(error)
            raise
        finally:
            seconds = time.monotonic() - started
            instruments.active.attempt(self._target.name, outcome, seconds)

    def _check_target(self, error: PublishRejectedError) -> None:
        """See whether the target takes anything at all, before it is said of the events.

        Raises:
            PublishUnavailableError: It refuses what cannot be wrong, too.
        """
        try:
            self._target.publish(self._target.probe())
        except PublishRejectedError:
            raise PublishUnavailableError(
                f"it refuses whatever is published: {error}"
            ) from error

    def _is_alone(self, error: PublishError) -> bool:
        """Say whether the target takes other things, when this has failed repeatedly.

        There may be an event that it always answers with an error, or batches for which its
        time does not suffice; the other partitions have no part in it.
        """
        if not self._lease.is_failing or failure_kind(error) == "connection":
            return False
        self._lease.renew()
        try:
            self._target.publish(self._target.probe())
        except PublishError:
            return False
        return True

    def _bisect(
        self, rows: Sequence[OutboxRow], error: PublishRejectedError
    ) -> list[tuple[OutboxRow, PublishRejectedError]]:
        """Publish the halves of a refused batch, down to the rows that are at fault."""
        if len(rows) == 1:
            return [(rows[0], error)]
        rejected = []
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            self._lease.renew()
            items = [item for row in half for item in self._target.encode(row)]
            try:
                self._attempt(items)
            except PublishRejectedError as half_error:
                rejected += self._bisect(half, half_error)
        return rejected

    def _bury(self, row: OutboxRow, error: PublishRejectedError) -> None:
        logger.error(
            "%s refused event %s of %s for good: %s",
            self._target.name, row.eid, row.channel, error,
            extra=self._facts(event_id=row.eid, channel=row.channel, error=str(error)),
        )  # fmt: skip
        name, text = self._target.name, str(error)
        write_letters(self._using, self._partition, name, [row], text)
        tell_of_letters(self._using, name, [row], text)

    def _confirm(
        self,
        position: int,
        rows: Sequence[OutboxRow] = (),
        *,
        read_at: float = 0.0,
        is_backlog: bool = False,
    ) -> bool:
        """Say that the target has the rows, and whether there is more to do.

        What was held up by a failure says nothing of the latency that operators are shown.
        """
        if rows:
            logger.info(
                "Published %s of partition %s to %s",
                describe_count(len(rows), "event"), self._partition, self._target.name,
                extra=self._facts(
                    event_count=len(rows), first=rows[0].position, last=rows[-1].position
                ),
            )  # fmt: skip
        passed = time.monotonic() - read_at
        latency = rows[0].age + passed if rows and not is_backlog else None
        goes_on = self._lease.confirm(position, len(rows), latency)
        self._event_count += len(rows)
        instruments.active.confirmed(
            self._target.name, [row.age + passed for row in rows]
        )
        events_confirmed.send_robust(
            Cursor,
            using=self._using,
            partition=self._partition,
            target=self._target.name,
            event_count=len(rows),
            position=position,
        )
        return goes_on

    def _record_failure(self, error: PublishError) -> None:
        try:
            is_alone = self._is_alone(error)
        except LeaseLostError:
            return
        failure = self._lease.fail(str(error), is_alone=is_alone)
        if failure is None:
            return
        attempts, delay = failure
        logger.warning(
            "Publishing partition %s to %s failed (%s in a row), again in %.1f s: %s",
            self._partition, self._target.name, attempts, delay, error,
            extra=self._facts(
                attempts=attempts, retry_seconds=round(delay, 1), error=str(error)
            ),
        )  # fmt: skip


def _few() -> int:
    return min(FEW, conf.get_options().batch_size)


def _calls(target: Target, rows: Sequence[OutboxRow]) -> Iterator[Call]:
    """Encode the rows, and cut them for calls of the target; a row is never cut."""
    limit = conf.get_options().batch_bytes
    most = target.most_events
    batch: list[OutboxRow] = []
    items: list[Item] = []
    size = CallSize()
    for row in rows:
        encoded = target.encode(row)
        if len(batch) == most or not size.add(encoded, limit):
            yield batch, items
            batch, items, size = [], [], CallSize()
            size.add(encoded, limit)
        batch.append(row)
        items.extend(encoded)
    if batch:
        yield batch, items


def ask_again(row: OutboxRow, keep: Callable[[], object]) -> OutboxRow:
    """Leave of the kicked users those who may still not read the channel.

    Args:
        row: With those who were kicked before it.
        keep: Called after each that the application was asked about, as that may take long.
    """
    if not row.kicked:
        return row
    users = split_users(row.kicked)
    kicked: list[str] = []
    for place, user in enumerate(users):
        if len(kicked) > MAX_KICKED:
            # All streams of the channel are asked for, whoever else is among these.
            kicked += users[place:]
            break
        if not may_read(user, row.channel):
            kicked.append(user)
        keep()
    return row._replace(kicked=join_users(kicked))


def publish_unstored(target_name: str, rows: list[OutboxRow]) -> None:
    """Publish best-effort events, which are in no table, to one target.

    Args:
        target_name: One of `get_targets()`.
        rows: They are taken out of the list as the target has had its say, call by call: what
            is left after an error can be tried again.

    Raises:
        PublishUnavailableError: The target did not accept what is left.
        PublishRejectedError: It will never accept some of them; the others have been tried.
    """
    target = get_targets().get(target_name)
    using = conf.get_options().databases[0]
    if PausedTarget.objects.using(using).filter(name=target_name).exists():
        return  # nobody waits for them, so nobody gets them later
    if target is None:
        return
    rejected: PublishRejectedError | None = None
    for batch, items in _calls(target, tuple(rows)):
        try:
            target.publish(items)
        except PublishRejectedError as error:
            rejected = error
        del rows[: len(batch)]
    if rejected is not None:
        raise rejected
