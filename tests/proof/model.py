"""The protocol as an explicit-state model, explored to the last state.

One partition with one channel and one target, so that places and ids are the same. Writers
insert, then commit or roll back in any order. Relays take a wake-up, lease, number, publish event by event, confirm,
release and look again; each step is atomic, and any relay may die between two. A lease
may run out at any time, which also covers a publish that takes longer than it. Readers
number, at any time, so that what a relay numbers while it publishes is nothing new, and what
it reads by then is the same batch or less of it; the sweep and prune come by whenever they
like. The broker may lose its queue.

Each `Variant` leaves out or changes one thing; `explore` must find each of them wrong.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple


class Variant(enum.Enum):
    """What differs from the protocol."""

    NONE = "the protocol itself"
    ONE_TRANSACTION = "numbers are committed together with the confirmation"
    COUNTER_IN_SENDER = "senders take the id from a counter"
    NO_LOOK_AGAIN = "a relay does not look again after releasing"
    FLAG_AFTER_READ = "a task lowers the wake-up flag when it is done"
    FORGETS_ITS_FLAG = (
        "a relay raises the flag anew, and lowers only that of its message"
    )
    NO_SECOND_TRY = "a task that finds the lease taken lowers the flag, and goes"
    HANDS_ON_FIRST = "a relay whose turn is over has the next woken, then releases"
    NO_SWEEP = "nobody sweeps, and workers and broker fail"
    CONFIRM_UNFENCED = "whoever has published confirms, with the lease or without"
    PRUNE_UNCONFIRMED = "prune does not look at the watermark"
    PRUNE_BY_AGE = "prune deletes what is old, not a prefix"
    PUBLISH_UNORDERED = "a batch is published newest first"


class Faults(NamedTuple):
    """What may go wrong in a run."""

    deaths: int = 1
    has_lost_queue: bool = True
    has_lease_expiry: bool = True


NO_FAULTS = Faults(0, False, False)

IDLE, INSERTED, COMMITTED, ROLLED_BACK = range(4)


class Relay(NamedTuple):
    """A relay's next step, and what it remembers. Batches are (place, row) pairs."""

    step: str = "idle"
    mark: int = 0
    batch: tuple[tuple[int, int], ...] = ()
    owns: str = ""  # the value of the flag that it lowers


class State(NamedTuple):
    """Everything that survives a step. Rows are named by their primary key, 0, 1, …"""

    writers: tuple[int, ...]
    places: tuple[int, ...]  # 0: unnumbered
    last: int
    pruned: frozenset[int]
    mark: int
    lease: int | None  # which relay's token
    flag: str  # lowered, or raised by a "message", or by a "relay" that looks again
    queue: int
    relays: tuple[Relay, ...]
    given: tuple[int, ...]  # the row that the target got first under id 1, 2, …
    deaths: int
    fault: str  # a step that must never happen, once it has


def _put(values: tuple, index: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:index], value, *values[index + 1 :])


class Model:
    """The steps that are possible, and what must never be seen.

    Args:
        variant: What differs.
        faults: What may fail.
        writer_count: Transactions, of one event each.
        limit: Most events numbered at a time.
    """

    def __init__(
        self,
        variant: Variant,
        faults: Faults,
        *,
        writer_count: int = 3,
        limit: int = 2,
    ) -> None:
        self.variant = variant
        self.faults = faults
        self.limit = limit
        self.start = State(
            writers=(IDLE,) * writer_count, places=(0,) * writer_count, last=0,
            pruned=frozenset(), mark=0, lease=None, flag="", queue=0,
            relays=(Relay(), Relay()), given=(), deaths=faults.deaths, fault="",
        )  # fmt: skip

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        """Yield every (name, next state)."""
        for row, writer in enumerate(s.writers):
            yield from self._writer_steps(s, row, writer)
        for number, relay in enumerate(s.relays):
            for name, after in self._relay_steps(s, number, relay):
                yield f"relay {number}: {name}", after
            if relay.step != "idle" and s.deaths:
                left = _put(s.relays, number, Relay())
                yield (
                    f"relay {number} dies",
                    s._replace(relays=left, deaths=s.deaths - 1),
                )
        if s.lease is not None and self._may_expire(s):
            yield "the lease runs out", s._replace(lease=None)
        if s.queue and self.faults.has_lost_queue:
            yield "the broker loses its queue", s._replace(queue=0)
        if s.flag and self.faults.has_lost_queue:
            yield "the flag runs out", s._replace(flag="")
        if self._unnumbered(s) and self.variant is not Variant.ONE_TRANSACTION:
            yield "a reader numbers", self._number(s)
        if self.variant is not Variant.NO_SWEEP and self.faults != NO_FAULTS:
            idle = [n for n, relay in enumerate(s.relays) if relay.step == "idle"]
            if self._has_work(s) and not s.queue and idle:
                relays = _put(s.relays, idle[0], Relay("acquire"))
                yield "sweep", s._replace(relays=relays)
        yield from self._prune_steps(s)

    def violation(self, s: State, *, is_end: bool) -> str:
        """Say what is wrong with a state, "" for nothing.

        Args:
            s: The state.
            is_end: No step leads out of it.
        """
        if s.fault:
            return s.fault
        stored = sorted(p for r, p in enumerate(s.places) if p and r not in s.pruned)
        if stored and stored != list(range(stored[0], stored[-1] + 1)):
            holes_are_uncommitted = self.variant is Variant.COUNTER_IN_SENDER
            if not holes_are_uncommitted:
                return "HOLE: the log has a hole that looks like a loss"
        if is_end and self._has_work(s):
            return "STUCK: an event waits, and nothing will ever happen"
        if is_end and len(s.given) != s.last:
            return "LOST: the target never got an event"
        return ""

    # --- writers, readers, prune

    def _writer_steps(
        self, s: State, row: int, writer: int
    ) -> Iterator[tuple[str, State]]:
        if writer == IDLE and (row == 0 or s.writers[row - 1] != IDLE):
            after = s._replace(writers=_put(s.writers, row, INSERTED))
            if self.variant is Variant.COUNTER_IN_SENDER:
                last = s.last + 1
                after = after._replace(places=_put(s.places, row, last), last=last)
            yield f"writer {row} inserts", after
        if writer == INSERTED:
            after = s._replace(writers=_put(s.writers, row, COMMITTED))
            yield f"writer {row} commits", self._wake(after)
            if row == 1:  # one that rolls back is as good as many
                rolled = _put(s.writers, row, ROLLED_BACK)
                yield f"writer {row} rolls back", s._replace(writers=rolled)

    def _wake(self, s: State) -> State:
        return s if s.flag else s._replace(flag="message", queue=s.queue + 1)

    def _unnumbered(self, s: State) -> list[int]:
        return [
            row
            for row, writer in enumerate(s.writers)
            if writer == COMMITTED and not s.places[row]
        ]

    def _number(self, s: State) -> State:
        places, last = s.places, s.last
        for row in self._unnumbered(s)[: self.limit]:
            last += 1
            places = _put(places, row, last)
        return s._replace(places=places, last=last)

    def _committed_last(self, s: State) -> int:
        visible = [
            place
            for row, place in enumerate(s.places)
            if s.writers[row] == COMMITTED and place
        ]
        return max(visible, default=0)

    def _has_work(self, s: State) -> bool:
        return bool(self._unnumbered(s)) or self._committed_last(s) > s.mark

    def _prune_steps(self, s: State) -> Iterator[tuple[str, State]]:
        stored = sorted(
            (place, row)
            for row, place in enumerate(s.places)
            if place and row not in s.pruned and s.writers[row] == COMMITTED
        )
        if self.variant is not Variant.PRUNE_BY_AGE:
            stored = stored[:1]
        for place, row in stored:
            if place <= s.mark or self.variant is Variant.PRUNE_UNCONFIRMED:
                yield f"prune {place}", s._replace(pruned=s.pruned | {row})

    # --- relays

    def _may_expire(self, s: State) -> bool:
        holder = s.relays[s.lease or 0]
        return self.faults.has_lease_expiry or holder.step == "idle"

    def _relay_steps(
        self, s: State, number: int, relay: Relay
    ) -> Iterator[tuple[str, State]]:
        def go(step: str, state: State = s, **changes: object) -> State:
            new = relay._replace(step=step, **changes)  # type: ignore[arg-type]
            if step not in ("number", "read", "publish", "confirm", "stay"):
                new = new._replace(mark=0, batch=())  # forgotten: fewer states
            if step == "idle":
                new = Relay()
                if self.variant is Variant.FLAG_AFTER_READ and relay.step != "lower":
                    new = relay._replace(step="lower")
            return state._replace(relays=_put(state.relays, number, new))

        holds = s.lease == number
        if relay.step == "idle" and s.queue:
            taken = s._replace(queue=s.queue - 1)
            yield "takes a task", go("acquire", taken, owns="message")
        elif relay.step in ("acquire", "acquire again"):
            if s.lease is None:
                yield "leases", go("number", s._replace(lease=number), mark=s.mark)
            elif relay.step == "acquire again":
                yield "finds it leased", go("idle")
            else:
                yield "finds it leased", go("lower and go")
        elif relay.step == "number":
            if self.variant is Variant.ONE_TRANSACTION:
                yield "numbers, uncommitted", go("read")
            else:
                yield "numbers", go("read", self._number(s))
        elif relay.step == "read":
            batch = self._read(s, relay.mark)
            if batch:
                yield f"reads {batch}", go("publish", batch=batch)
            else:
                yield "reads nothing", go("release")
        elif relay.step == "publish":
            (place, row), rest = relay.batch[0], relay.batch[1:]
            after = self._give(s, place, row)
            if rest:
                yield f"publishes {place}", go("publish", after, batch=rest)
            else:
                yield f"publishes {place}", go("confirm", after, batch=((place, row),))
        elif relay.step == "confirm":
            yield from self._confirm(s, relay, go, holds=holds)
        elif relay.step == "stay":
            # Another, which had the lease before, may have lowered it at its end.
            forgets = self.variant is Variant.FORGETS_ITS_FLAG
            owns = relay.owns if forgets else "relay"
            raised = s._replace(flag="relay")
            yield "keeps the flag up", go("number", raised, owns=owns)
        elif relay.step == "release":
            released = s._replace(lease=None) if holds else s
            is_late = self.variant is Variant.FLAG_AFTER_READ
            if self.variant is Variant.HANDS_ON_FIRST and self._has_work(s):
                yield "lowers", go("lower")  # its turn is over
            yield "releases", go("look again" if is_late else "lower", released)
        elif relay.step in ("lower", "lower and go"):
            lowered = s._replace(flag="") if s.flag == relay.owns else s
            following = "look again"
            if self.variant is Variant.HANDS_ON_FIRST and holds:
                following = "hand on first"
            elif relay.step == "lower and go":
                is_over = self.variant is Variant.NO_SECOND_TRY
                following = "idle" if is_over else "acquire again"
            elif self.variant in (Variant.NO_LOOK_AGAIN, Variant.FLAG_AFTER_READ):
                following = "idle"
            yield "lowers the flag", go(following, lowered, owns="")
        elif relay.step == "hand on first":
            yield "has another go on", go("release and go", self._wake(s))
        elif relay.step == "release and go":
            yield "releases", go("idle", s._replace(lease=None) if holds else s)
        elif relay.step == "look again":
            yield "looks again", go("keep up" if self._has_work(s) else "idle")
            if self._has_work(s):
                yield "has another go on", go("idle", self._wake(s))
        elif relay.step == "keep up":
            raised = s._replace(flag="relay")
            yield "raises the flag", go("acquire", raised, owns="relay")

    def _read(self, s: State, mark: int) -> tuple[tuple[int, int], ...]:
        if self.variant is Variant.ONE_TRANSACTION:
            rows = self._unnumbered(s)[: self.limit]
            return tuple((s.last + n, row) for n, row in enumerate(rows, 1))
        found = sorted(
            (place, row)
            for row, place in enumerate(s.places)
            if place > mark and s.writers[row] == COMMITTED and row not in s.pruned
        )
        if self.variant is Variant.PUBLISH_UNORDERED:
            found.reverse()
        return tuple(found[: self.limit])

    def _give(self, s: State, place: int, row: int) -> State:
        """Have the target take an event: it has had it, or it follows the last."""
        if place <= len(s.given):
            if s.given[place - 1] != row:
                return s._replace(fault=f"ID: {place} is published for two events")
            return s
        if place != len(s.given) + 1:
            return s._replace(fault=f"GAP: {place} is published after {len(s.given)}")
        return s._replace(given=(*s.given, row))

    def _confirm(self, s: State, relay: Relay, go, *, holds: bool) -> Iterator[tuple[str, State]]:  # type: ignore[no-untyped-def]  # fmt: skip
        place = relay.batch[-1][0]
        if self.variant is Variant.ONE_TRANSACTION:
            places, last = s.places, s.last
            for row in self._unnumbered(s)[: self.limit]:
                if last < place:
                    last += 1
                    places = _put(places, row, last)
            after = s._replace(places=places, last=last, mark=last)
            yield "confirms and commits", go("number", after, mark=last)
            return
        if self.variant is Variant.CONFIRM_UNFENCED:
            after = s._replace(mark=place)
            if place < s.mark:
                after = after._replace(fault="BACK: the watermark went back")
            yield "confirms", go("number", after, mark=place)
        elif holds:
            yield "confirms", go("number", s._replace(mark=place), mark=place)
            yield "confirms", go("stay", s._replace(mark=place), mark=place)
        else:
            yield "has lost the lease", go("acquire")


class Result(NamedTuple):
    """What an exploration found: states seen, the first violation, and the way to it."""

    state_count: int
    violation: str
    trace: list[str]


def explore(model: Model) -> Result:
    """Visit every reachable state, breadth first, up to the first violation."""
    came_from: dict[State, tuple[State, str] | None] = {model.start: None}
    waiting = deque([model.start])
    while waiting:
        state = waiting.popleft()
        following = list(model.steps(state))
        violation = model.violation(state, is_end=not following)
        if violation:
            trace = []
            at = came_from[state]
            while at is not None:
                trace.append(at[1])
                at = came_from[at[0]]
            return Result(len(came_from), violation, trace[::-1])
        for name, after in following:
            if after not in came_from:
                came_from[after] = (state, name)
                waiting.append(after)
    return Result(len(came_from), "", [])
