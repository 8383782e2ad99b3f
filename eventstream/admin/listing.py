"""A page of the undelivered events: what is asked for, what is found, where to go on."""

from __future__ import annotations

from urllib.parse import urlencode

from django.http import QueryDict

from eventstream.admin.base import alias
from eventstream.status import COUNT_LIMIT, Status
from eventstream.undelivered import (
    DEAD,
    MAX_OFFSET,
    WAITING,
    Search,
    find_undelivered,
)
from eventstream.words import describe_count

PAGE_SIZE = 50
AGES = {
    "60": "1 minute",
    "600": "10 minutes",
    "3600": "1 hour",
    "21600": "6 hours",
}
STATES = {WAITING: "waiting", DEAD: "dead letters"}


class Listing:
    """One page of one search.

    Attributes:
        search, age: What is looked for; the age as the form has it.
        notes: What about the filters made no sense.
        page: What was found.
        first, last: Its places in the whole.
        is_filtered: Not everything is looked for.
        waiting_text, dead_text: How much there is in all.
        query: The filters, as they stand in links.
        previous, next: The query of the page before and after; "" without one.
        is_at_end: There is more, which cannot be paged to.
    """

    max_offset = MAX_OFFSET

    def __init__(self, query: QueryDict, status: Status) -> None:
        self.search, self.notes = _read_search(query, status)
        older_than = self.search.older_than
        self.age = str(int(older_than)) if older_than else ""
        offset = _read_offset(query)
        self.page = find_undelivered(
            alias(), self.search, offset=offset, limit=PAGE_SIZE
        )
        self.first = offset + 1
        self.last = offset + len(self.page.events)
        everything = Search(is_newest_first=self.search.is_newest_first)
        self.is_filtered = self.search != everything
        self.waiting_text = f"{status.undelivered_count:,} waiting"
        self.dead_text = _dead_text(status.dead_letter_count)
        self.query = filters_of(query)
        self.previous = _link(query, offset - PAGE_SIZE) if offset else ""
        self.next = _link(query, offset + PAGE_SIZE) if self.page.has_more else ""
        self.is_at_end = self.page.has_more and offset + PAGE_SIZE > MAX_OFFSET


def _dead_text(count: int) -> str:
    if count > COUNT_LIMIT:
        return f"over {COUNT_LIMIT:,} dead letters"
    return describe_count(count, "dead letter")


def _read_search(query: QueryDict, status: Status) -> tuple[Search, list[str]]:
    """Return what the filters ask for, and what about them makes no sense."""
    notes = []
    target = query.get("target", "")
    if target and target not in {t.name for t in status.targets}:
        notes.append(f"There is no target {target!r}: all are shown.")
        target = ""
    state = query.get("state", "")
    if state and state not in STATES:
        notes.append(f"There is no state {state!r}: all are shown.")
        state = ""
    age = query.get("age", "")
    if age and age not in AGES:
        notes.append(f"{age!r} is no age to choose: all are shown.")
        age = ""
    search = Search(
        target=target,
        channel=query.get("q", "")[:255].replace("\0", ""),
        older_than=float(age or 0),
        state=state,
        is_newest_first=query.get("order") == "newest",
    )
    return search, notes


def _read_offset(query: QueryDict) -> int:
    text = query.get("from", "")
    is_number = text.isascii() and text.isdecimal() and len(text) < 9
    return min(int(text), MAX_OFFSET) if is_number else 0


def filters_of(query: QueryDict) -> str:
    """Return the filters as a query, without anything else that may be in it."""
    names = ("q", "target", "age", "state", "order", "from")
    return urlencode([(name, query[name]) for name in names if query.get(name)])


def _link(query: QueryDict, offset: int) -> str:
    if not 0 <= offset <= MAX_OFFSET:
        return ""
    copy = query.copy()
    copy["from"] = str(offset) if offset else ""
    return f"?{filters_of(copy)}"
