"""What was sent, what is in the log, what everybody received: is the promise kept?"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.support.grip_endpoint import stored_events
from tests.support.sse import Crowd, Reader

SLOW = 1.0
"""Seconds that a sender may wait because of anything but the database."""


@dataclass
class Row:
    """A numbered row of the outbox; `age` in seconds."""

    id: int
    partition: int
    position: int
    kind: int
    channel: str
    eid: int | None
    data: str
    age: float


@dataclass
class Evidence:
    """Everything that is known at the end.

    Attributes:
        crowds: The clients, by a name of the holder and the kind of channel.
        records: What the writers wrote down.
        rows: The log, with what was pruned.
        heads: The last event id of each channel.
        recorded: Publish items that the recording proxy accepted, in order.
        kicked: User → when the kick was committed.
        faults: (name, began, ended) of each fault.
        prunings: The log before each, and what was left after it.
        prune_after: The age from which rows were pruned, in seconds.
    """

    crowds: dict[str, Crowd]
    records: list[dict[str, Any]]
    rows: list[Row]
    heads: dict[str, int]
    recorded: list[dict[str, Any]]
    kicked: dict[int, float]
    faults: list[tuple[str, float, float]]
    prunings: list[tuple[dict[str, Any], dict[str, Any]]]
    prune_after: float
    counts: Counter[str] = field(default_factory=Counter)


def read_records(files: list[Path]) -> list[dict[str, Any]]:
    """Return what the writers wrote down."""
    records = []
    for path in files:
        for line in path.read_text().splitlines():
            records.append(json.loads(line))
    return records


def judge(seen: Evidence) -> list[str]:
    """Return what is wrong, nothing if all is well."""
    wrong: list[str] = []
    payloads = _payloads(seen, wrong)
    _check_senders(seen, payloads, wrong)
    _check_readers(seen, payloads, wrong)
    _check_kicks(seen, wrong)
    _check_prunings(seen, wrong)
    _count(seen)
    return wrong


def _payloads(seen: Evidence, wrong: list[str]) -> dict[tuple[str, int], str]:
    """Return the data of each (channel, id); there must be one, wherever it was seen."""
    payloads: dict[tuple[str, int], str] = {}

    def take(channel: str, eid: int, data: str, where: str) -> None:
        text = data.strip('"')
        known = payloads.setdefault((channel, eid), text)
        if known != text:
            wrong.append(f"{where}: {channel}:{eid} is {text!r}, elsewhere {known!r}")

    for row in seen.rows:
        if row.eid is not None:
            take(row.channel, row.eid, row.data, "log")
    for name, eid, data in stored_events(seen.recorded):
        take(name.removeprefix("events-"), eid, data, "recording proxy")
        seen.counts["published to the recording proxy"] += 1
    for where, crowd in seen.crowds.items():
        for reader in crowd.readers:
            for eid, data in zip(reader.ids, reader.data, strict=True):
                take(reader.name, eid, data, where)
    return payloads


def _check_senders(
    seen: Evidence, payloads: dict[tuple[str, int], str], wrong: list[str]
) -> None:
    found: dict[str, tuple[str, int]] = {}
    for place, text in sorted(payloads.items()):
        if text in found:
            wrong.append(f"{text!r} is {found[text]} and {place}: one event, two ids")
        found[text] = place
    in_log = {row.data.strip('"') for row in seen.rows}
    committed: dict[str, str] = {}
    rolled_back = set()
    for record in seen.records:
        for channel, text in record["sent"]:
            if record["outcome"] == "committed":
                committed[text] = channel
                if text not in in_log:
                    wrong.append(f"{text!r} was committed and is not in the log")
            elif record["outcome"] == "rolled back":
                rolled_back.add(text)
    for text, channel in committed.items():
        if text not in found:
            wrong.append(f"{text!r} was committed, and nobody has it")
        elif found[text][0] != channel:
            wrong.append(f"{text!r} was sent to {channel} and is in {found[text][0]}")
    for text in rolled_back & found.keys():
        wrong.append(f"{text!r} was rolled back, and is {found[text]}")
    last: dict[tuple[str, str], int] = {}
    for (channel, eid), text in sorted(payloads.items()):
        writer, _, number = text.partition("-")
        if last.get((channel, writer), 0) > int(number):
            wrong.append(
                f"{channel}:{eid} {text!r} comes after a later one of {writer}"
            )
        last[channel, writer] = int(number)
    slow = [record["held_up"] for record in seen.records]
    wrong += [f"sending held its caller up for {s:.2f} s" for s in slow if s > SLOW]
    seen.counts["slowest sender, ms"] = round(1000 * max(slow, default=0))
    seen.counts["events committed"] = len(committed)
    seen.counts["events rolled back"] = len(rolled_back)


def _check_readers(
    seen: Evidence, payloads: dict[tuple[str, int], str], wrong: list[str]
) -> None:
    pruned = _pruned_up_to(seen)
    for where, crowd in seen.crowds.items():
        for reader in crowd.readers:
            is_proxied = "Pushpin" in where
            if fault := _gap(reader, pruned, seen.counts if is_proxied else None):
                wrong.append(f"{where}: {reader.name}: {fault}")
            head = seen.heads.get(reader.name, 0)
            if not crowd.stops_when_refused and reader.position != head:
                wrong.append(f"{where}: {reader.name} ends before {head}")
            if reader.refusals and not crowd.stops_when_refused:
                wrong.append(f"{where}: {reader.name} was refused")
            seen.counts[f"reconnects, {where}"] += reader.reconnects
            seen.counts["catch-ups"] += reader.catch_ups
            seen.counts["resets"] += reader.resets
            seen.counts["deliveries"] += len(reader.ids)
        # Who reads again is given the floor; all may be pruned by then.
        is_awaited = not crowd.began_late or any(
            seen.heads.get(reader.name, 0) > reader.reset_from.get(0, 0)
            for reader in crowd.readers
        )
        if (
            crowd.readers
            and is_awaited
            and not any(reader.ids for reader in crowd.readers)
        ):
            wrong.append(f"{where}: nobody received anything")
    if seen.counts["repeated by Pushpin"] > seen.counts["deliveries"] / 200:
        wrong.append("Pushpin repeated more than a rare accident of its own explains")


def _pruned_up_to(seen: Evidence) -> dict[str, int]:
    """Return the largest event id of each channel that was pruned."""
    found: dict[str, int] = {}
    for before, after in seen.prunings:
        for row in (Row(*values) for values in before["rows"]):
            is_gone = row.position < after["first"].get(str(row.partition), 2**63)
            if is_gone and row.eid is not None:
                found[row.channel] = max(row.eid, found.get(row.channel, 0))
    return found


def _gap(reader: Reader, pruned: dict[str, int], repeated: Counter[str] | None) -> str:
    """Return the first id that does not follow, "" if all do.

    Args:
        reader: Who has received them.
        pruned: The largest id of each channel that was pruned.
        repeated: Where to count what Pushpin hands over twice once the web processes are
            back (docs/decisions/0013); None where nothing may come twice.
    """
    last = 0
    for index, eid in enumerate([*reader.ids, None]):
        if index in reader.reset_from:
            if last >= pruned.get(reader.name, 0) and (index or reader.resets):
                return (
                    f"reset at {last}, and only {pruned.get(reader.name, 0)} are pruned"
                )
            last = reader.reset_from[index]
        if eid is None:
            break
        if repeated is not None and 0 < eid <= last:
            repeated["repeated by Pushpin"] += 1
            continue
        if eid != last + 1:
            began = time.strftime("%H:%M:%S", time.localtime(reader.times[index]))
            ended = [round(at - reader.times[index], 1) for at in reader.ended_at]
            near = [seconds for seconds in ended if -10 < seconds < 10]
            return f"{eid} follows {last} at {began}, cut off {near} s after it"
        last = eid
    return ""


def _check_kicks(seen: Evidence, wrong: list[str]) -> None:
    """A kicked user's streams end, and bring nothing that follows the kick in the log."""
    limits: dict[str, int] = {}
    eid = 0
    for row in seen.rows:
        if row.channel == "members":
            if row.kind:
                limits[row.data] = eid
            else:
                eid = row.eid or 0
    for pk in seen.kicked:
        if str(pk) not in limits:
            wrong.append(f"the kick of user {pk} is not in the log")
    for where, crowd in seen.crowds.items():
        if not crowd.stops_when_refused:
            continue
        for reader in crowd.readers:
            limit = limits.get(reader.owner)
            if limit is None:
                if reader.refusals:
                    wrong.append(f"{where}: user {reader.owner} was refused unkicked")
                continue
            if not reader.refusals:
                wrong.append(f"{where}: user {reader.owner} was kicked and reads on")
            elif reader.ids and reader.ids[-1] > limit:
                late = reader.ids[-1] - limit
                wrong.append(f"{where}: user {reader.owner} got {late} after the kick")
    seen.counts["kicks"] = len(seen.kicked)


def _check_prunings(seen: Evidence, wrong: list[str]) -> None:
    """Nothing young was pruned, and nothing that a target waited for that was not failing."""
    for before, after in seen.prunings:
        for row in (Row(*values) for values in before["rows"]):
            if row.position >= after["first"].get(str(row.partition), 2**63):
                continue
            seen.counts["events pruned"] += 1
            # Ages are whole seconds, rounded down.
            if row.age + 1 + after["took"] < seen.prune_after:
                wrong.append(f"{row.channel}:{row.eid} was pruned {row.age:.1f} s old")
            for partition, target, watermark, failing in after["cursors"]:
                is_waiting = partition == row.partition and watermark < row.position
                if is_waiting and (failing or 0) < seen.prune_after:
                    wrong.append(f"{row.channel}:{row.eid} was pruned before {target}")


def collect_rows(seen: list[dict[str, Any]]) -> list[Row]:
    """Return every row that was in the log at some time, in order; `seen` ends with now."""
    rows = {}
    for log in seen:
        for values in log["rows"]:
            row = Row(*values)
            rows[row.partition, row.position] = row
    return [row for _, row in sorted(rows.items())]


def _count(seen: Evidence) -> None:
    previous: dict[int, int] = {}
    for row in seen.rows:
        if row.id < previous.get(row.partition, 0):
            seen.counts["commit-order inversions"] += 1
        previous[row.partition] = max(row.id, previous.get(row.partition, 0))
    had = set()
    for name, eid, _ in stored_events(seen.recorded):
        seen.counts["duplicates at the recording proxy"] += (name, eid) in had
        had.add((name, eid))


def recovery(seen: Evidence) -> dict[str, list[float]]:
    """Return, by fault, how long after its end the events of its time had all arrived.

    Faults that follow at once are in the figures of those before.
    """
    arrived: dict[str, float] = {}
    for crowd in seen.crowds.values():
        if crowd.stops_when_refused or crowd.began_late:
            continue
        for reader in crowd.readers:
            for data, when in zip(reader.data, reader.times, strict=True):
                text = data.strip('"')
                arrived[text] = max(arrived.get(text, 0), when)
    times: dict[str, list[float]] = defaultdict(list)
    for name, began, ended in seen.faults:
        last = 0.0
        for record in seen.records:
            if record["outcome"] == "committed" and began <= record["ended"] <= ended:
                for _, text in record["sent"]:
                    last = max(last, arrived.get(text, 0) - ended)
        times[name].append(last)
    return dict(times)


def print_recovery(seen: Evidence) -> None:
    """Print a line for each fault."""
    print(f"{'fault':36} {'times':>5} {'median':>7} {'worst':>7}   seconds to recover")
    for name, times in sorted(recovery(seen).items()):
        print(f"{name:36} {len(times):5} {median(times):7.1f} {max(times):7.1f}")
