"""`make mutations`: break the code in each way that is known to lose events, and see red.

Works on a copy. Each mutation names the test that must fail; one that passes all the same
is reported, and the exit code says so. So it is if one fails on a copy of the code as it
is, or for want of whatever it needs: its failure would prove nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import ROOT

COPIED = ["eventstream", "eventstream_tasks", "deploy", "tests", "manage.py", "pyproject.toml"]  # fmt: skip

RELAY = "tests/integration/test_relay.py"
IN_FLIGHT = "tests/integration/test_in_flight.py"
HUB = "tests/integration/test_hub.py"
SENDING = "tests/integration/test_sending.py"
NUMBERING = "tests/integration/test_numbering.py"
STATES = "tests/integration/test_initial_state.py"
JOINING = "tests/proof/test_initial_states.py"
WAKING = "tests/integration/test_wake_ups.py"
STREAMS = "tests/acceptance/test_streams.py"

TIMEOUT = 60
"""Seconds for a test that says none of its own: a mutant may go round in circles."""
HISTORIES = 600
"""Of the random ones: enough of them to find what one in a hundred shows."""


class Mutation(NamedTuple):
    """What to change, and which test must notice, on SQLite or on PostgreSQL."""

    name: str
    file: str
    old: str
    new: str
    test: str
    on_postgresql: bool = False


MUTATIONS = [
    Mutation(
        "confirmed before it is published", "eventstream/relay.py",
        "            if not is_accepted:\n                self._publish(rows, items)\n            watermark = rows[-1].position\n            goes_on = self._confirm(watermark, rows, read_at=flight.read_at)\n",
        "            watermark = rows[-1].position\n            goes_on = self._confirm(watermark, rows, read_at=flight.read_at)\n            if not is_accepted:\n                self._publish(rows, items)\n",
        f"{RELAY}::test_failing_target_holds_up_no_other",
    ),
    Mutation(
        "nothing is numbered while a batch is published", "eventstream/relay.py",
        "                    self._flight.start()\n", "",
        f"{IN_FLIGHT}::test_next_batch_is_numbered_while_one_is_published",
    ),
    Mutation(
        "confirmed ahead of its call", "eventstream/inflight.py",
        "                self._attempt(call[1])\n                self._accepted.put(call)\n",
        "                self._accepted.put(call)\n                self._attempt(call[1])\n",
        f"{IN_FLIGHT}::test_nothing_is_published_after_what_has_failed",
    ),
    Mutation(
        "published on after a failure", "eventstream/inflight.py",
        "if call is None or not isinstance(error, PublishRejectedError):", "if call is None:",
        f"{IN_FLIGHT}::test_nothing_is_published_after_what_has_failed",
    ),
    Mutation(
        "a lease is released while a call is under way", "eventstream/relay.py",
        "                self._flight.stop()\n", "",
        f"{IN_FLIGHT}::test_lease_is_held_until_the_call_under_way_is_over",
    ),
    Mutation(
        "a relay that ends makes its further calls", "eventstream/inflight.py",
        "if self._is_stopped:", "if False:",
        f"{IN_FLIGHT}::test_lease_is_held_until_the_call_under_way_is_over",
    ),
    Mutation(
        "what was read before a pause is published after it", "eventstream/relay.py",
        " or (was_in_flight and self._lease.pause())", "",
        f"{IN_FLIGHT}::test_target_that_was_paused_meanwhile_gets_no_further_batch",
    ),
    Mutation(
        "published before the ids are committed", "eventstream/relay.py",
        "    def _drain(self, taken: Taken) -> None:\n",
        "    from django.db.transaction import atomic\n    @atomic\n    def _drain(self, taken: Taken) -> None:\n",
        f"{RELAY}::test_ids_are_committed_before_anything_is_published",
    ),
    Mutation(
        "a watermark goes back", "eventstream/cursors.py",
        "self._mine().filter(watermark__lte=position)", "self._mine()",
        f"{RELAY}::test_watermark_never_goes_back",
    ),
    Mutation(
        "a reader gives ids in a transaction that may roll back", "eventstream/reading.py",
        "    if connections[using].in_atomic_block:\n        return", "    if False:\n        return",
        "tests/integration/test_reading.py::test_reader_in_a_transaction_gives_no_ids",
    ),
    Mutation(
        "a reader numbers before the targets have cursors", "eventstream/reading.py",
        "        ensure_cursors(storage, using, partition)\n", "",
        "tests/integration/test_reading.py::test_events_that_a_reader_numbered_first_still_reach_the_targets",
    ),
    Mutation(
        "a piece that reaches the head is shared after the head has moved", "eventstream/pieces.py",
        "wanted._replace(head=-1) if waiting > wanted.limit else wanted", "wanted._replace(head=-1)",
        "tests/integration/test_pieces.py::test_nobody_is_told_less_than_there_is",
    ),
    Mutation(
        "a user is shown what another may see", "eventstream/pieces.py",
        "    if piece.is_for_all:\n", "    if True:\n",
        "tests/integration/test_pieces.py::test_each_user_is_left_out_of_what_is_not_for_that_user",
    ),
    Mutation(
        "a relay at work leaves the flag as another left it", "eventstream/relay.py",
        "            self._flag.keep_up()\n            if self._flag.is_over", "            if self._flag.is_over",
        f"{WAKING}::test_relay_at_work_raises_the_flag_that_another_has_lowered",
    ),
    Mutation(
        "no sweep", "eventstream/jobs.py",
        "reports = relay_all(using, ends=ends)", "reports = {}",
        f"{RELAY}::test_sweep_finds_what_nobody_was_woken_for",
    ),
    Mutation(
        "ids are given by the sender", "eventstream/api.py",
        "    storage = get_storage()\n    if not has_keys and len(events) == 1:\n        storage.append(alias, events)\n",
        "    storage = get_storage()\n    if not has_keys and len(events) == 1:\n        storage.append(alias, events)\n        storage.number_all(alias, events[0].partition)\n",
        f"{SENDING}::test_one_event_costs_one_insert",
    ),
    Mutation(
        "a partition that waits for another's attempts has no backlog", "eventstream/relay.py",
        "            self._lease.count_as_failing()\n", "            pass\n",
        f"{RELAY}::test_partition_that_waits_for_another_s_attempts_has_a_backlog_as_well",
    ),
    Mutation(
        "no look after releasing", "eventstream/relay.py",
        "if not self._lease.has_work():\n            return", "if True:\n            return",
        f"{RELAY}::test_event_whose_wake_up_found_the_lease_taken_is_not_left_behind",
    ),
    Mutation(
        "confirmed without the lease", "eventstream/cursors.py",
        "self._mine().filter(watermark__lte=position)",
        "self._rows().filter(watermark__lte=position)",
        f"{RELAY}::test_relay_that_lost_its_lease_confirms_nothing",
    ),
    Mutation(
        "cursors made after numbering", "eventstream/relay.py",
        "        taken = self._take(force=force)\n        while",
        "        self._storage.number_all(self._using, self._partition)\n        taken = self._take(force=force)\n        while",
        f"{RELAY}::test_every_target_gets_every_event_once_in_order",
    ),
    Mutation(
        "an event's id is what the proxy knew before it", "eventstream/targets/grip.py",
        "{row.eid}\\n{body}\\n\"", "{row.eid},%I\\n{body}\\n\"",
        "tests/unit/test_injection.py::test_proxy_expands_nothing_that_was_sent",
    ),
    Mutation(
        "a page goes through the filters of another", "eventstream/hold.py",
        "    if kind is LinkKind.BARE_PAGE and reader.positions:\n", "    if False:\n",
        "tests/integration/test_views.py::test_page_that_is_not_the_last_links_on_and_does_not_hold",
    ),
    Mutation(
        "of two entries of a channel the first counts", "eventstream/positions.py",
        "positions[unquote(name)] = eid", "positions.setdefault(unquote(name), eid)",
        "tests/unit/test_positions.py::test_of_two_entries_of_a_channel_the_last_counts",
    ),
    Mutation(
        "a wrong key buries the outbox", "eventstream/targets/grip.py",
        "frozenset({400, 413, 422})", "frozenset({400, 401, 403, 413, 422})",
        "tests/unit/test_grip_target.py::test_any_other_answer_is_for_now",
    ),
    Mutation(
        "a refused event is passed over without a dead letter", "eventstream/relay.py",
        "                self._bury(row, reason)", "                pass",
        f"{RELAY}::test_refused_event_is_buried_and_the_rest_delivered",
    ),
    Mutation(
        "a dead letter is published after a newer event", "eventstream/retrying.py",
        "elif self._is_superseded(letter, watermark):", "elif False:",
        f"{RELAY}::test_dead_letter_is_not_published_after_a_newer_event",
    ),
    Mutation(
        "what was given up is published", "eventstream/deadletters.py",
        "return [row for row in rows if row.position not in given_up]", "return list(rows)",
        f"{RELAY}::test_event_that_was_given_up_is_passed_over",
    ),
    Mutation(
        "numbered in descending order", "eventstream/numbering.py",
        "row_number() OVER (ORDER BY b.id) AS place,\n    CASE WHEN b.kind = 0 THEN c.last_eid",
        "row_number() OVER (ORDER BY b.id DESC) AS place,\n    CASE WHEN b.kind = 0 THEN c.last_eid",
        NUMBERING,
    ),
    Mutation(
        "positions do not move on", "eventstream/numbering.py",
        "rows.update(last_position=base + count)",
        "rows.update(last_position=base + 1)",
        NUMBERING,
    ),
    Mutation(
        "what has waited for the numbering lock numbers what it saw before", "eventstream/numbering.py",
        "    AND p.last_position = s.last_position AND p.start_eid = s.start_eid\n", "",
        f"{NUMBERING}::test_numbering_that_waited_for_another_numbers_nothing_twice", True,
    ),
    Mutation(
        "what has waited for a reset of readers gives ids of before", "eventstream/numbering.py",
        " AND p.start_eid = s.start_eid\n", "\n",
        f"{NUMBERING}::test_numbering_that_waited_for_a_reset_of_readers_begins_after_it", True,
    ),
    Mutation(
        "what is numbered is taken for all that a target has not got", "eventstream/numbering.py",
        "ON (SELECT last_position FROM current) = %(after)s", "ON true",
        f"{NUMBERING}::test_what_is_numbered_and_read_at_once_is_what_is_read_afterwards", True,
    ),
    Mutation(
        "what is numbered is published in the order in which it was found", "eventstream/numbering.py",
        'sorted(make_rows(found), key=attrgetter("position"))', "make_rows(found)",
        f"{NUMBERING}::test_rows_are_in_order_however_they_were_found", True,
    ),
    Mutation(
        "a kick that is numbered with an event is not seen by it", "eventstream/numbering.py",
        "EXISTS (SELECT 1 FROM batch WHERE kind = 1) OR ", "",
        f"{NUMBERING}::test_what_is_numbered_and_read_at_once_is_what_is_read_afterwards", True,
    ),
    Mutation(
        "what waits is looked for along the primary key", "eventstream/numbering.py",
        "    ORDER BY partition, id LIMIT %(limit)s\n  ) AS waiting", "    ORDER BY id LIMIT %(limit)s\n  ) AS waiting",
        "tests/integration/test_plans.py", True,
    ),
    Mutation(
        "a batch is looked for in the whole table", "eventstream/numbering.py",
        " AND n.place - 1 BETWEEN 0 AND %(limit)s", "",
        "tests/integration/test_plans.py::test_large_batch_is_numbered_without_the_rest_of_the_table", True,
    ),
    Mutation(
        "a batch is not looked for behind what was pruned", "eventstream/log.py",
        "for up_to in (after + limit, NO_END):", "for up_to in (after + limit,):",
        "tests/integration/test_plans.py::test_batch_is_found_behind_what_was_pruned",
    ),
    Mutation(
        "more is read than fits into memory", "eventstream/log.py",
        "WHERE before < %(limit_bytes)s ORDER BY position", "ORDER BY position",
        f"{NUMBERING}::test_no_more_is_read_than_fits_into_memory",
    ),
    Mutation(
        "more is numbered and read than fits into memory", "eventstream/numbering.py",
        ") AS waiting WHERE before < %(limit_bytes)s", ") AS waiting",
        f"{NUMBERING}::test_no_more_is_read_than_fits_into_memory", True,
    ),
    Mutation(
        "a web process gets more at once than it keeps", "eventstream/relay.py",
        "len(batch) == most or ", "",
        f"{RELAY}::test_bus_gets_no_more_at_once_than_web_processes_keep",
    ),
    Mutation(
        "a watermark goes back, on PostgreSQL", "eventstream/statements.py",
        "AND c.watermark <= %(position)s", "",
        f"{RELAY}::test_watermark_never_goes_back", True,
    ),
    Mutation(
        "confirmed without the lease, on PostgreSQL", "eventstream/statements.py",
        "  AND c.lease_token = %(token)s AND c.watermark", "  AND c.watermark",
        f"{RELAY}::test_relay_that_lost_its_lease_confirms_nothing", True,
    ),
    Mutation(
        "a lease is taken while another has it, on PostgreSQL", "eventstream/statements.py",
        "  AND (c.lease_until IS NULL OR c.lease_until < statement_timestamp())\n", "",
        f"{RELAY}::test_leased_partition_is_left_to_its_relay", True,
    ),
    Mutation(
        "numbered in descending order, on PostgreSQL", "eventstream/numbering.py",
        "b.place,\n    CASE WHEN b.kind = 0 THEN u.last_eid",
        "row_number() OVER (ORDER BY b.id DESC) AS place,\n    CASE WHEN b.kind = 0 THEN u.last_eid",
        NUMBERING, True,
    ),
    Mutation(
        "prune does not look at the watermark", "eventstream/pruning.py",
        "bound = min(bound, lowest)", "pass",
        f"{RELAY}::test_prune_leaves_what_a_target_has_not_got",
    ),
    Mutation(
        "prune leaves a row between two transactions", "eventstream/pruning.py",
        "            first = last + 1\n", "            first = last + 2\n",
        f"{RELAY}::test_prune_in_several_transactions_leaves_nothing_between",
    ),
    Mutation(
        "a kick ends all streams of a user behind a proxy", "eventstream/hold.py",
        "        channel.filters.append(FILTER_REQUIRE_SUB)\n", "",
        "tests/integration/test_views.py::test_hold_leaves_out_whom_an_event_is_not_for_and_ends_for_its_channels_alone",
    ),
    Mutation(
        "a proxy passes on what is not for the user", "eventstream/hold.py",
        "        channel.filters.append(FILTER_SKIP_USERS)\n", "",
        "tests/integration/test_views.py::test_hold_leaves_out_whom_an_event_is_not_for_and_ends_for_its_channels_alone",
    ),
    Mutation(
        "a stream that opens behind a proxy is asked for late", "eventstream/hold.py",
        "silence = min(ASK_SOON, silence)", "pass",
        "tests/integration/test_views.py::test_stream_that_may_lack_something_is_asked_for_soon",
    ),
    Mutation(
        "what a proxy lets go of while it asks is late", "eventstream/hold.py",
        "has_news=has_news,", "has_news=False,",
        "tests/integration/test_views.py::test_stream_that_may_lack_something_is_asked_for_soon",
    ),
    Mutation(
        "the streams of a busy channel are asked for soon, always", "eventstream/hold.py",
        "reader.positions and kind is LinkKind.HOLD\n", "reader.positions\n",
        "tests/integration/test_views.py::test_stream_that_may_lack_something_is_asked_for_soon",
    ),
    Mutation(
        "each room has links by the dozen", "eventstream/hold.py",
        "randbelow(LINKS // len(paths))", "randbelow(LINKS)",
        "tests/integration/test_links.py::test_route_of_many_paths_has_as_many_links_in_all",
    ),
    Mutation(
        "a page's token is one of a held stream", "eventstream/hold.py",
        "    if kind.is_hold != (number is not None):\n", "    if False:\n",
        "tests/integration/test_links.py::test_token_of_another_kind_of_link_is_not_good",
    ),
    Mutation(
        "a proxy is never reminded of its streams", "eventstream/jobs.py",
        "            target.remind()\n", "            pass\n",
        "tests/integration/test_relay.py::test_targets_are_reminded_of_their_streams_once_a_minute",
    ),
    Mutation(
        "prune leaves the letters", "eventstream/pruning.py",
        "  DELETE FROM {letter} WHERE", "  SELECT 1 FROM {letter} WHERE",
        f"{RELAY}::test_prune_deletes_the_letters_of_what_it_deletes", True,
    ),
    Mutation(
        "prune by age", "eventstream/pruning.py",
        "last = bound = young - 1", "pass",
        f"{RELAY}::test_prune_makes_no_hole_when_ages_are_inverted",
    ),
    Mutation(
        "prune deletes around what is young", "eventstream/pruning.py",
        "count <= last - first", "False",
        f"{RELAY}::test_prune_makes_no_hole_when_ages_are_inverted",
    ),
    Mutation(
        "a pruned position is passed over in silence", "eventstream/log.py",
        "if not found or found[0][0] != eid + 1:", "if not found:",
        f"{RELAY}::test_position_outside_the_log_is_a_reset",
    ),
    Mutation(
        "woken before the commit", "eventstream/api.py",
        "transaction.on_commit(wake, using=alias, robust=True)", "wake()",
        f"{SENDING}::test_nothing_is_published_before_the_commit",
    ),
    Mutation(
        "the sender waits for the broker", "eventstream_tasks/dispatch.py",
        "                waker.want(using, new, _sending(app))\n",
        "                waker.want(using, new, _sending(app))\n                waker.flush(60)\n",
        f"{WAKING}::test_sender_is_not_held_up_by_a_dead_broker",
    ),
    Mutation(
        "an error of the dispatcher reaches the sender", "eventstream_tasks/dispatch.py",
        "    except Exception as error:\n        broker.connections",
        "    except ZeroDivisionError as error:\n        broker.connections",
        f"{WAKING}::test_error_of_the_broker_ends_no_waking",
    ),
    Mutation(
        "what is wanted while others are being woken is forgotten", "eventstream_tasks/waking.py",
        "                self._wake(wanted)\n",
        "                self._wake(wanted)\n                self._wanted = {}\n",
        "tests/unit/test_waking.py",
    ),
    Mutation(
        "a process ends without having woken", "eventstream_tasks/waking.py",
        "            Finalize(None, self._end, exitpriority=100)\n", "",
        f"{WAKING}::test_process_that_ends_at_once_has_woken",
    ),
    Mutation(
        "a child waits for its parent's thread", "eventstream_tasks/waking.py",
        "    pid = os.getpid()\n", "    pid = 0\n",
        "tests/unit/test_waking.py",
    ),
    Mutation(
        "a relay publishes to a target that is paused meanwhile", "eventstream/relay.py",
        "if found.is_paused or ", "if ",
        f"{WAKING}::test_target_that_is_paused_during_the_wait_gets_nothing_more",
    ),
    Mutation(
        "nobody goes on after a relay that has waited for as long as it may", "eventstream_tasks/tasks.py",
        "        flag.hand_on()\n", "        pass\n",
        f"{WAKING}::test_relay_does_not_wait_for_ever_for_what_keeps_coming",
    ),
    Mutation(
        "a relay that has more keeps its worker for as long as it has", "eventstream_tasks/dispatch.py",
        "self._is_over = _others_wait()", "pass",
        f"{WAKING}::test_relay_that_has_more_makes_room_for_a_task_that_waits",
    ),
    Mutation(
        "a relay whose turn is over leaves what is in flight unconfirmed", "eventstream/relay.py",
        "                self._finish()\n                return\n", "                return\n",
        "tests/integration/test_in_flight.py::test_turn_that_is_over_ends_with_what_is_in_flight",
    ),
    Mutation(
        "a sweep comes back to nothing", "eventstream/relay.py",
        "if not has_more or time", "if has_more or time",
        f"{RELAY}::test_partition_that_never_ends_leaves_others_their_turn_in_a_sweep",
    ),
    Mutation(
        "a task that goes on is in the trace of the first event", "eventstream_tasks/dispatch.py",
        "Context().run(_sending, _get_app())", "_sending(_get_app())",
        f"{WAKING}::test_task_that_goes_on_is_sent_in_no_context",
    ),
    Mutation(
        "a relay hands on though nothing comes any more", "eventstream_tasks/dispatch.py",
        "return since > 0 and time.monotonic() >= since + MOST_WATCHING", "return since > 0",
        f"{WAKING}::test_event_whose_call_was_lost_is_found_when_the_wait_ends",
    ),
    Mutation(
        "a relay does not watch though more comes while it is at work", "eventstream/relay.py",
        "            self._flag.watch()  # as more", "            # as more",
        f"{RELAY}::test_relay_watches_once_more_has_come_while_it_was_at_work",
    ),
    Mutation(
        "a relay that waits makes room for nobody", "eventstream_tasks/dispatch.py",
        "                self._look_at = min(self._look_at, now + BEGIN)\n", "                pass\n",
        f"{WAKING}::test_relay_that_waits_makes_room_for_another_partition",
    ),
    Mutation(
        "a relay waits though another partition's task was there before", "eventstream_tasks/dispatch.py",
        "return _is_any_queued() or broker", "return broker",
        f"{WAKING}::test_relay_makes_room_for_what_was_enqueued_before_it_listened",
    ),
    Mutation(
        "a relay waits though other tasks do", "eventstream_tasks/dispatch.py",
        "return _is_any_queued() or broker.tasks_wait()", "return _is_any_queued()",
        f"{WAKING}::test_relay_waits_for_nothing_while_any_task_waits_for_the_worker",
    ),
    Mutation(
        "the wake-up flag is lowered after the last try for the lease", "eventstream/relay.py",
        "        if taken is None:\n            self._flag.lower()\n", "        if taken is None:\n",
        f"{WAKING}::test_event_after_the_last_try_for_a_taken_lease_wakes_somebody",
    ),
    Mutation(
        "the wake-up flag is lowered after the last look", "eventstream/relay.py",
        "        self._flag.lower()\n        if not self._lease.has_work():\n",
        "        if not self._lease.has_work():\n",
        f"{WAKING}::test_event_that_commits_right_after_the_last_look_wakes_somebody",
    ),
    Mutation(
        "a kick outside the outbox", "eventstream/api.py",
        "        with transaction.atomic(using=alias):\n            get_storage().append(alias, [row])\n            _wake_on_commit(alias, {row.partition})",
        "        from eventstream.targets.bus import BusTarget\n        from eventstream.conf import redis_arguments\n        BusTarget(redis_arguments() or {}).publish([])",
        f"{STREAMS}::test_withdrawn_permission_ends_that_user_s_stream_only",
    ),
    Mutation(
        "the event after a kick does not name the kicked", "eventstream/log.py",
        "row = row._replace(kicked=kicked)", "pass",
        f"{STREAMS}::test_stream_that_was_opened_while_its_user_was_kicked_gets_nothing",
    ),
    Mutation(
        "permission is asked before the log is read, not after", "eventstream/reading.py",
        "    if asks_permissions() or is_operator(reader.user_id):", "    if False:",
        "tests/integration/test_views.py",
    ),
    Mutation(
        "a stream that begins does not look at what was withdrawn meanwhile", "eventstream/hub/permissions.py",
        "self._kicks.get((name, reader.user_id), -1.0) >= reader.checked_at", "False",
        "tests/integration/test_hub.py::test_kick_between_check_and_start_ends_the_stream",
    ),
    Mutation(
        "a stream that begins trusts in kicks that the hub has not heard", "eventstream/hub/permissions.py",
        "            and reader.checked_at <= heard_since\n", "            and False\n",
        "tests/integration/test_hub.py::test_kick_before_the_hub_has_looked_ends_the_stream",
    ),
    Mutation(
        "two looks are both the first", "eventstream/hub/log.py",
        "        async with self._looking[using]:\n            heads", "        if True:\n            heads",
        "tests/integration/test_hub.py::test_kick_between_two_looks_that_are_both_the_first_is_heard",
    ),
    Mutation(
        "permissions are asked in every thread of the hub", "eventstream/hub/permissions.py",
        "                async with self._pool.slots:\n", "                if True:\n",
        "tests/integration/test_hub.py::test_slow_channel_manager_holds_up_nobody_else",
    ),
    Mutation(
        "a log that went back is not followed", "eventstream/hub/channels.py",
        "if state.is_live and is_its_log and last_eid < heads[name]:", "if False:",
        "tests/integration/test_hub.py::test_readers_of_what_a_promoted_replica_lacks_are_reset",
    ),
    Mutation(
        "a reader of what was lost is found when it has time", "eventstream/hub/tails.py",
        "                subscriber.lost |= {self.name}\n", "                pass\n",
        "tests/integration/test_hub.py::test_readers_of_what_a_promoted_replica_lacks_are_reset",
    ),
    Mutation(
        "a page of a log that has lost its end is written", "eventstream/hub/streams.py",
        "            if subscriber.loss_count != loss_count:\n                break\n", "",
        "tests/integration/test_hub.py::test_page_of_a_log_that_has_lost_its_end_meanwhile_is_read_again",
    ),
    Mutation(
        "a channel manager that fails for one is asked about all", "eventstream/hub/permissions.py",
        "asked = self._unknown = [s for s in self._unknown if s.is_open]", "asked = subscribers",
        "tests/integration/test_hub.py::test_those_about_whom_nobody_answers_have_no_others_asked_about",
    ),
    Mutation(
        "a deleted partition begins anew", "eventstream/numbering.py",
        "last_position=self._known_positions(using, partition).get(partition, 0),", "last_position=0,",
        "tests/integration/test_reset_readers.py::test_deleted_partition_goes_on_where_it_was",
    ),
    Mutation(
        "a reset leaves channels behind their events", "eventstream/numbering.py",
        "                cursor.execute(_MEND_CHANNELS.format(**_names(using)))\n", "                pass\n",
        "tests/integration/test_reset_readers.py::test_rows_set_back_by_hand_are_mended_by_a_reset",
    ),
    Mutation(
        "a state is shared that was read before the log lost its end", "eventstream/hub/tails.py",
        "        self.beginnings.clear()\n", "",
        "tests/integration/test_initial_state.py::test_state_is_read_again_if_the_log_has_lost_its_end_meanwhile",
    ),
    Mutation(
        "a page is put before the tail whatever its bytes", "eventstream/hub/tails.py",
        "            if self.tail_bytes + item.size > options.queue_bytes:\n                return\n", "",
        "tests/integration/test_hub.py::test_tail_stays_within_its_bytes_at_both_ends",
    ),
    Mutation(
        "an answer is compared with what came after it", "eventstream/hub/channels.py",
        "last_eid < heads[name]", "last_eid < state.head",
        "tests/integration/test_hub.py::test_answer_that_is_older_than_what_the_bus_has_brought_resets_nobody",
    ),
    Mutation(
        "kicks of a partition that went back are those above where it was", "eventstream/hub/log.py",
        "if known is None or any(head < known.get(p, 0) for p, head in heads.items()):", "if known is None:",
        "tests/integration/test_hub.py::test_kick_where_the_log_had_another_position_before_is_heard",
    ),
    Mutation(
        "a database that is away ends the looks at others", "eventstream/hub/switchboard.py",
        "await asyncio.gather(*looks, return_exceptions=True)", "[await look for look in looks]",
        "tests/integration/test_hub.py::test_database_that_is_away_stops_no_stream_of_another",
    ),
    Mutation(
        "a database that is away hides channels of others", "eventstream/hub/log.py",
        "                if storage.has_channel(using, channel):\n                    return using, True\n", "                pass\n",
        "tests/integration/test_hub.py::test_database_that_is_away_stops_no_stream_of_another",
    ),
    Mutation(
        "of a long backlog's newest events the first are enough", "eventstream/log.py",
        "range(0, len(positions), _POSITIONS_PER_QUERY)", "range(0, min(1, len(positions)))",
        f"{RELAY}::test_lease_is_kept_while_the_newest_of_a_long_backlog_are_looked_for",
    ),
    Mutation(
        "a channel that is being joined is one too many", "eventstream/hub/channels.py",
        "live = (state for state in idle if state.is_live)", "live = (state for state in idle)",
        f"{HUB}::test_channel_that_is_being_joined_is_not_one_too_many",
    ),
    Mutation(
        "kicks that were pruned unheard are for no stream", "eventstream/hub/log.py",
        "known = self._heads.get(using) if self.is_known(using) else None", "known = self._heads.get(using)",
        f"{HUB}::test_kick_that_was_pruned_unheard_ends_the_stream",
    ),
    Mutation(
        "the bus tells of what no look has told for long", "eventstream/hub/channels.py",
        "if state.is_live and self._log.is_known(state.alias):", "if state.is_live:",
        f"{HUB}::test_kick_that_was_pruned_unheard_ends_the_stream",
    ),
    Mutation(
        "kicks before the first look at a database are for no stream", "eventstream/hub/log.py",
        "            self._on_begun()\n", "",
        "tests/integration/test_hub.py::test_kick_of_which_a_database_has_not_told_since_the_hub_began_is_heard",
    ),
    Mutation(
        "what has moved counts as looked at before it is", "eventstream/hub/switchboard.py",
        "        await self.channels.look(using, None if is_full else moved)\n        self._log.done(using, heads)\n",
        "        self._log.done(using, heads)\n        await self.channels.look(using, None if is_full else moved)\n",
        "tests/integration/test_hub.py::test_look_that_could_not_be_finished_is_taken_up_by_the_next",
    ),
    Mutation(
        "a channel that could not be read is left alone", "eventstream/hub/channels.py",
        "                self.fill(each, each.wanted)\n", "                pass\n",
        "tests/integration/test_hub.py::test_look_that_could_not_be_finished_is_taken_up_by_the_next",
    ),
    Mutation(
        "each of those whose join failed clears the way", "eventstream/hub/channels.py",
        "            if state.joined is joined:\n", "            if True:\n",
        "tests/integration/test_hub.py::test_one_of_those_whose_join_failed_begins_the_next",
    ),
    Mutation(
        "the bus is subscribed to again without a word", "eventstream/redisclients.py",
        'redis.asyncio.retry.Retry(NoBackoff(), 0)', 'redis.asyncio.retry.Retry(NoBackoff(), 10)',
        "tests/integration/test_hub.py::test_what_passed_while_the_connection_was_cut_is_found",
    ),
    Mutation(
        "the lease of a connection that was cut is left", "eventstream/relay.py",
        "            connection.close()\n            self._lease.release()\n", "            raise\n",
        f"{IN_FLIGHT}::test_relay_whose_connection_is_cut_goes_on_by_a_new_one", on_postgresql=True,
    ),
    Mutation(
        "a page passes a hole", "eventstream/log.py",
        "if found[-1][0] != eid + len(found):", "if False:",
        "tests/integration/test_reading.py::test_page_ends_before_a_hole",
    ),
    Mutation(
        "accounts are read from a replica", "eventstream/channelmanager.py",
        "model._default_manager.using(router.db_for_write(model))", "model._default_manager.all()",
        "tests/integration/test_databases.py::test_account_is_asked_for_where_it_is_written",
    ),
    Mutation(
        "what is on its way is given up", "eventstream/cursors.py",
        'free.update(lease_token="", lease_until=None)', 'rows.update(lease_token="")',
        f"{IN_FLIGHT}::test_event_on_its_way_cannot_be_given_up",
    ),
    Mutation(
        "what is given up is numbered before the others' cursors", "eventstream/deadletters.py",
        "    ensure_cursors(storage, using, partition)", "    0",
        f"{RELAY}::test_unnumbered_event_is_given_up_for_one_target_only",
    ),
    Mutation(
        "who fails alone speaks for all", "eventstream/statements.py",
        "      AND NOT coalesce(o.confirmed_at > o.failing_since, false)\n", "",
        f"{RELAY}::test_event_that_its_target_never_takes_holds_up_its_partition_alone", on_postgresql=True,
    ),
    Mutation(
        "who fails with all the others is taken for alone", "eventstream/relay.py",
        "        except PublishError:\n            return False\n        return True\n", "        except PublishError:\n            return True\n        return True\n",
        f"{RELAY}::test_partitions_wait_for_one_that_fails_again",
    ),
    Mutation(
        "a relay gives back another's lease, on PostgreSQL", "eventstream/statements.py",
        "  AND c.lease_token = %(token)s\n  AND set_config", "  AND set_config",
        f"{RELAY}::test_only_the_holder_of_a_lease_gives_it_back", on_postgresql=True,
    ),
    Mutation(
        "a series of batches outlives its lease", "eventstream/cursors.py",
        "            watermark=position,\n            lease_until=self._end(),\n", "            watermark=position,\n",
        f"{RELAY}::test_each_confirmation_renews_the_lease",
    ),
    Mutation(
        "a series of batches outlives its lease, on PostgreSQL", "eventstream/statements.py",
        "c SET watermark = %(position)s,\n  lease_until = statement_timestamp() + %(lease)s * interval '1 second',\n", "c SET watermark = %(position)s,\n",
        f"{RELAY}::test_each_confirmation_renews_the_lease", on_postgresql=True,
    ),
    Mutation(
        "a search for what is refused outlives its lease", "eventstream/relay.py",
        "        for half in (rows[:middle], rows[middle:]):\n            self._lease.renew()\n", "        for half in (rows[:middle], rows[middle:]):\n",
        f"{RELAY}::test_search_for_what_is_refused_renews_the_lease",
    ),
    Mutation(
        "a long backlog outlives its lease", "eventstream/relay.py",
        "                self._lease.renew()\n                self._publish(batch, items)\n", "                self._publish(batch, items)\n",
        f"{RELAY}::test_long_backlog_is_read_in_parts_and_its_lease_renewed",
    ),
    Mutation(
        "a channel without events stays where it is looked for first", "eventstream/hub/channels.py",
        "(state.alias == using or (state.alias and not state.is_alias_known))", "state.alias == using",
        "tests/integration/test_hub.py::test_first_event_of_a_channel_is_found_in_whichever_database",
    ),
    Mutation(
        "a gap is filled from where the channel was looked for first", "eventstream/hub/log.py",
        "        await self.find_alias(state)\n        await self.begin", "        await self.begin",
        "tests/integration/test_hub.py::test_first_event_of_a_channel_is_found_in_whichever_database",
    ),
    Mutation(
        "events before a reset have the position that is lost", "eventstream/reading.py",
        "        if not (found.lost and found.parts):\n            break\n", "        break\n",
        "tests/integration/test_reading.py::test_events_have_the_position_behind_what_was_lost",
    ),
    Mutation(
        "a kick is for whom the caller's object says", "eventstream/api.py",
        "        found = channelmanager.find_user(str(user.pk))\n        channelmanager.check_permission(found, [channel])\n",
        "        channelmanager.check_permission(user, [channel])\n",
        "tests/integration/test_sending.py::test_account_that_is_not_active_any_more_is_kicked",
    ),
    Mutation(
        "a list of one's own leaves the path to the client", "eventstream/drf/viewsets.py",
        "if self.channels or self._chooses_in_list():", "if self.channels:",
        "tests/integration/test_drf.py::test_fixed_channels_are_fixed",
    ),
    Mutation(
        "a thread that could not start is not tried again", "eventstream_tasks/waking.py",
        "return is_running and (using, partition) in self._wanted", "return (using, partition) in self._wanted",
        "tests/unit/test_waking.py::test_thread_that_could_not_be_started_is_tried_again",
    ),
    Mutation(
        "a stream is written however large what was read is", "eventstream/hub/log.py",
        "rows, size = cut(log.rows, CHUNK_BYTES)", "rows, size = log.rows, 0",
        "tests/integration/test_hub.py::test_client_that_reads_nothing_leaves_a_megabyte_in_memory",
    ),
    Mutation(
        "a message of another kind is taken as far as it goes", "eventstream/targets/bus.py",
        '            raise ValueError("a message of another kind")\n', "            pass\n",
        "tests/unit/test_bus.py::test_message_of_another_kind_is_refused_whole",
    ),
    Mutation(
        "what a tail has is written before a reset of another channel", "eventstream/hub/subscribers.py",
        "if len(self.states) > 1 and (lost := self._lost_states()):", "if lost := []:",
        f"{HUB}::test_reset_of_a_channel_comes_before_what_the_tail_of_another_has",
    ),
    Mutation(
        "a lost place counts again once the log has grown past it", "eventstream/hub/subscribers.py",
        " or state.name in lost)", ")",
        "tests/unit/test_subscribers.py::test_channel_whose_log_has_grown_past_a_lost_place_comes_first_and_alone",
    ),
    Mutation(
        "a client that is gone ends the others' join", "eventstream/hub/channels.py",
        "await asyncio.shield(joined)", "await joined",
        f"{HUB}::test_client_that_is_gone_takes_nobody_along[current_ids]",
    ),
    Mutation(
        "a client that is gone ends the others' read", "eventstream/hub/log.py",
        "log = await asyncio.shield(task)", "log = await task",
        f"{HUB}::test_client_that_is_gone_takes_nobody_along[_read_page]",
    ),
    Mutation(
        "a client that is gone ends what fills a tail", "eventstream/hub/channels.py",
        "await asyncio.shield(state.filling)", "await state.filling",
        f"{HUB}::test_client_that_is_gone_ends_no_filling",
    ),
    Mutation(
        "a client that is gone ends the others' beginning", "eventstream/hub/beginnings.py",
        "return await asyncio.shield(task)", "return await task",
        f"{STATES}::test_readers_that_share_a_state_share_its_position",
    ),
    Mutation(
        "what was read with a kick is sent before permission is asked", "eventstream/hub/streams.py",
        '                    return b""\n                await subscriber.wait_until_checked()\n', '                    return b""\n',
        f"{HUB}::test_kick_is_found_with_the_page_that_a_reader_is_behind",
    ),
    Mutation(
        "a state is sent before permission is asked again", "eventstream/hub/streams.py",
        "        if beginnings:\n            await subscriber.wait_until_checked()\n", "",
        f"{STATES}::test_state_is_not_sent_if_the_permission_is_withdrawn_once_it_is_read",
    ),
    Mutation(
        "a state is sent though permission is refused", "eventstream/hub/streams.py",
        "        if not subscriber.error:\n            opening", "        if True:\n            opening",
        f"{STATES}::test_state_is_not_sent_if_the_permission_is_withdrawn_once_it_is_read",
    ),
    Mutation(
        "a kick is forgotten before streams have begun that were checked before", "eventstream/hub/permissions.py",
        "_KICK_MEMORY = 60.0", "_KICK_MEMORY = 0.0",
        f"{HUB}::test_kick_is_kept_in_mind_until_streams_checked_before_have_begun",
    ),
    Mutation(
        "the bus is whole once a topic is confirmed", "eventstream/hub/buslink.py",
        "            if not self._unconfirmed:\n", "            if True:\n",
        f"{HUB}::test_bus_is_whole_once_the_last_topic_is_confirmed",
    ),
    Mutation(
        "a page that one channel fills is the last", "eventstream/reading.py",
        "                is_last = False\n                break", "                break",
        "tests/integration/test_reading.py::test_page_that_one_channel_fills_is_not_the_last",
    ),
    Mutation(
        "kicks are looked for in two hundred partitions", "eventstream/log.py",
        "for first in range(0, len(pairs), 200):", "for first in range(0, min(200, len(pairs)), 200):",
        "tests/integration/test_reading.py::test_kicks_are_found_in_each_of_many_partitions",
    ),
    Mutation(
        "who shares a state goes on from where the channel is", "eventstream/hub/beginnings.py",
        "                subscriber.places[state.name] = place\n", "",
        f"{STATES}::test_readers_that_share_a_state_share_its_position",
    ),
    Mutation(
        "a user's name is a header's text", "eventstream/hold.py",
        'instruct.meta["user"] = quote_channel(reader.user_id)', 'instruct.meta["user"] = reader.user_id',
        "tests/integration/test_views.py::test_user_s_name_adds_nothing_to_what_the_proxy_is_told",
    ),
    Mutation(
        "a user whose key looks like an operator's is that operator", "eventstream/reading.py",
        "    elif is_operator(user_id):  # a primary key that looks like what it is not\n        raise ChannelPermissionError(sorted(names))\n", "",
        "tests/integration/test_operator_tokens.py::test_user_whose_key_looks_like_an_operator_s_is_none",
    ),
    Mutation(
        "a reader's thread keeps a connection that was cut", "eventstream/hub/pool.py",
        "            connections[alias].close()\n", "            pass\n",
        f"{HUB}::test_call_whose_connection_was_cut_is_made_once_more_by_another",
    ),
    Mutation(
        "a page has room for ids of any length", "eventstream/reading.py",
        "left = min(options.page_size, most) - event_count", "left = options.page_size - event_count",
        "tests/integration/test_reading.py::test_page_is_as_large_as_its_settings_say_whatever_its_ids_name",
    ),
    Mutation(
        "a stream has room for ids of any length", "eventstream/hub/subscribers.py",
        "        rows = rows[: self._most_events()]\n", "",
        f"{HUB}::test_client_that_names_long_channels_leaves_a_megabyte_in_memory[log]",
    ),
    Mutation(
        "a chunk without an event for the reader is taken for the end", "eventstream/hub/subscribers.py",
        "                self.wake()  # for the rest, even if none of this is for the reader\n", "                pass\n",
        "tests/unit/test_subscribers.py::test_stream_goes_on_after_a_chunk_that_has_nothing_for_it",
    ),
    Mutation(
        "a channel is subscribed to once its head was read", "eventstream/hub/channels.py",
        "        if self._bus is not None:\n            await self._bus.subscribe(event_topic(state.name))\n        if not state.is_reliable:\n            await self._log.begin(alias_by_router(state.name))  # which has its kicks\n            state.is_live = True\n            return\n        await self._log.find_alias(state)\n        await self._log.begin(state.alias)\n        heads = await self._log.current_ids(state.alias, [state.name])\n",
        "        await self._log.find_alias(state)\n        await self._log.begin(state.alias)\n        heads = await self._log.current_ids(state.alias, [state.name])\n        if self._bus is not None:\n            await self._bus.subscribe(event_topic(state.name))\n",
        f"{HUB}::test_event_that_comes_while_a_channel_is_joined_is_not_between_head_and_bus",
    ),
    Mutation(
        "what comes while a channel is joined is forgotten", "eventstream/hub/channels.py",
        "        if state.wanted > state.head:\n            self.fill(state, state.wanted)\n", "",
        f"{HUB}::test_event_that_comes_while_a_channel_is_joined_is_not_between_head_and_bus",
    ),
    Mutation(
        "what is asked for while the bus connects is not subscribed to", "eventstream/hub/buslink.py",
        '                    await self._send("subscribe", *late)\n', "                    pass\n",
        f"{HUB}::test_channel_that_is_asked_for_while_the_bus_connects_is_heard_of",
    ),
    Mutation(
        "a channel that was pruned past the hub stands still", "eventstream/hub/channels.py",
        "                if log.is_reset:", "                if False:",
        f"{HUB}::test_reader_of_a_channel_that_was_pruned_past_the_hub_is_reset",
    ),
    Mutation(
        "a tail that begins anew keeps what was in it", "eventstream/hub/tails.py",
        "        self.tail.clear()\n", "",
        f"{HUB}::test_tail_that_begins_anew_has_nothing_from_before",
    ),
    Mutation(
        "a channel is forgotten though somebody has come", "eventstream/hub/channels.py",
        "            if state.subscribers:\n                continue  # somebody came while another was being unsubscribed\n", "",
        f"{HUB}::test_channel_that_is_read_again_while_another_is_left_is_kept",
    ),
    Mutation(
        "what was encoded outlives the log that it was of", "eventstream/hub/tails.py",
        "        self._chunk = None\n        self.head = eid\n", "        self.head = eid\n",
        f"{HUB}::test_tail_that_begins_anew_has_nothing_from_before",
    ),
    Mutation(
        "the hub stays behind a reader that is ahead of it", "eventstream/hub/streams.py",
        "            self._channels.fill(state, place)\n", "            pass\n",
        f"{HUB}::test_hub_goes_on_from_where_a_reader_is_that_is_ahead_of_it",
    ),
    Mutation(
        "a kick that is for nobody ends the look", "eventstream/hub/permissions.py",
        "        if state is None:\n            return\n", "",
        f"{HUB}::test_kick_of_whom_nobody_holds_a_stream_keeps_no_other_unheard",
    ),
    Mutation(
        "positions whose rows are gone are passed over by word only", "eventstream/relay.py",
        "            self._confirm(head)\n            return head\n", "            return watermark\n",
        f"{RELAY}::test_relay_passes_over_what_is_gone_though_nothing_follows",
    ),
    Mutation(
        "the hub takes what does not follow", "eventstream/hub/tails.py",
        "if event.eid == self.head + 1:", "if event.eid > self.head:",
        f"{HUB}::test_events_that_do_not_follow_are_not_taken",
    ),
    Mutation(
        "a best-effort stream begins before its kicks are heard of", "eventstream/hub/channels.py",
        "            await self._log.begin(alias_by_router(state.name))  # which has its kicks\n", "",
        f"{HUB}::test_best_effort_stream_opens_once_its_kicks_are_heard_of",
    ),
    Mutation(
        "the same, in histories that nobody has thought of", "eventstream/hub/tails.py",
        "if event.eid == self.head + 1:", "if event.eid > self.head:",
        "tests/proof/test_hub_histories.py::test_no_history_of_a_hub_breaks_the_promise[bus]",
    ),
    Mutation(
        "the hub does not look again when the bus is back", "eventstream/hub/switchboard.py",
        "self._spawn(self._look_again())", "pass",
        f"{HUB}::test_what_the_bus_lost_while_it_was_away_is_found",
    ),
    Mutation(
        "the kicked reader is asked about, and served meanwhile", "eventstream/hub/permissions.py",
        "            subscriber.check_count += 1\n        if mine", "            subscriber.check_count += 0\n        if mine",
        f"{HUB}::test_kicked_reader_is_sent_nothing_until_the_manager_could_be_asked",
    ),
    Mutation(
        "a direct stream's position is read after its initial state", "eventstream/hub/beginnings.py",
        "return place, await self._pool.run(read)",
        "body = await self._pool.run(read)\n            return state.head, body",
        JOINING,
    ),
    Mutation(
        "a proxied stream's position is read after its initial state", "eventstream/reading.py",
        "    begin = {\n        name: reader",
        "    for name in states:\n        positions[name] = storage.current_ids(alias_of(name), [name])[name]\n    begin = {\n        name: reader",
        JOINING,
    ),
    Mutation(
        "a stream opens with the position that its state is yet to lead to", "eventstream/hub/beginnings.py",
        "                subscriber.unbegun |= {state.name}\n", "",
        STATES,
    ),
    Mutation(
        "a page that is cut off looks whole", "eventstream/hold.py",
        '    response["Content-Length"] = str(len(response.content))\n', "",
        "tests/integration/test_views.py::test_every_answer_to_a_proxy_says_how_long_it_is",
    ),
    Mutation(
        "a channel whose position is not told goes on from its end", "eventstream/hold.py",
        'raise ExpiredLinkError("The proxy does not hold such a stream")', "pass",
        "tests/integration/test_links.py::test_link_of_several_channels_needs_the_position_of_each",
    ),
    Mutation(
        "a proxy is told an error while the database is away", "eventstream/hold.py",
        "    except (OperationalError, InterfaceError) as error:", "    except LookupError as error:",
        "tests/integration/test_views.py::test_stream_is_held_as_it_is_while_the_database_is_away",
    ),
    Mutation(
        "a tail is begun before its head is known", "eventstream/hub/channels.py",
        "if state.filling is None and state.is_live:", "if state.filling is None:",
        "tests/integration/test_hub.py::test_look_while_a_channel_is_joined_begins_no_tail",
    ),
    Mutation(
        "an event is taken before its channel's head is known", "eventstream/hub/channels.py",
        "        if state.is_live and self._log.is_known(state.alias):\n", "        if self._log.is_known(state.alias):\n",
        "tests/integration/test_hub.py::test_event_that_comes_while_a_channel_is_joined_begins_no_tail",
    ),
    Mutation(
        "nobody answers a proxy whose web process is away", "deploy/pushpin/routes.template",
        " 127.0.0.1:$standby_port", "",
        "tests/acceptance/test_standby.py::test_route_that_is_written_has_it_as_a_second_target",
    ),
    Mutation(
        "who opens a stream gets 502 while no web process is there", "deploy/pushpin/standby.py",
        "if not _OPENING.match(head):", "if True:",
        "tests/acceptance/test_standby.py",
    ),
    Mutation(
        "a page of another origin may not read an empty stream", "deploy/pushpin/standby.py",
        'if origin else b"")', 'if False else b"")',
        "tests/acceptance/test_standby.py",
    ),
    Mutation(
        "a coroutine is taken for a permission", "eventstream/channelmanager.py",
        "if not any(inspect.isawaitable(answer) for answer in answers):", "if True:",
        "tests/unit/test_channelmanager.py::test_manager_may_be_async",
    ),
    Mutation(
        "a token permits what the channel manager refuses", "eventstream/reading.py",
        "    check(user, names)\n", "    grant or check(user, names)\n",
        "tests/integration/test_tokens.py::test_token_grants_nothing_that_the_channel_manager_refuses",
    ),
    Mutation(
        "any origin may read with its visitors' cookies", "eventstream/cors.py",
        'if origin.lower() in allowed and origin != "*":',
        'if origin and (origin.lower() in allowed or "*" in allowed):',
        "tests/integration/test_cors.py::test_origins_are_let_in_exactly_as_configured",
    ),
    Mutation(
        "a kicked stream goes on while nobody can be asked", "eventstream/hub/permissions.py",
        "                if subscriber not in unknown:", "                if True:",
        "tests/integration/test_hub.py::test_kicked_reader_is_sent_nothing_until_the_manager_could_be_asked",
    ),
    Mutation(
        "each middleware has a thread of its own", "eventstream/asgi.py",
        "_Handler() if is_djangos else application", "application",
        "tests/integration/test_asgi_threads.py::test_middleware_and_view_are_called_in_one_go",
    ),
    Mutation(
        "a thread is for one request alone", "eventstream/asgi.py",
        "executor = self._idle.pop()", "executor = ThreadPoolExecutor(1)",
        "tests/integration/test_asgi_threads.py::test_thread_is_kept_for_the_next_request",
    ),
    Mutation(
        "a thread is kept for each of a crowd", "eventstream/asgi.py",
        "if len(self._idle) < AT_ONCE:", "if True:",
        "tests/integration/test_asgi_threads.py::test_no_more_are_kept_than_are_let_in_at_once",
    ),
    Mutation(
        "a thread that is at work is another's", "eventstream/asgi.py",
        "closed.add_done_callback(lambda _: self._keep(executor))", "self._keep(executor)",
        "tests/integration/test_asgi_threads.py::test_who_is_still_at_work_holds_up_nobody",
    ),
    Mutation(
        "a thread that waits keeps its connections", "eventstream/asgi.py",
        "executor.submit(connections.close_all)", "executor.submit(int)",
        "tests/integration/test_asgi_threads.py::test_nothing_is_kept_open_in_a_thread_that_waits",
    ),
    Mutation(
        "a crowd behind Pushpin gets 502", "deploy/pushpin/__init__.py",
        "[address] * PIPES", "[address]",
        "tests/acceptance/test_held_streams.py::test_crowd_that_comes_at_once_is_not_refused",
    ),
    Mutation(
        "zurl makes 2,000 requests at once", "deploy/pushpin/__init__.py",
        "        if not source.exists():\n", "        if True:\n",
        "tests/acceptance/test_held_streams.py::test_as_many_are_asked_for_at_once_as_there_may_be",
    ),
    Mutation(
        "a stream is written though a middleware has answered", "eventstream/asgi.py",
        "if any(name.lower() == _MARK_BYTES for name, _ in headers):", "if True:",
        "tests/integration/test_asgi.py::test_middleware_has_the_last_word",
    ),
    Mutation(
        "a wake before the wait is lost", "eventstream/hub/subscribers.py",
        "        if not self._is_woken:\n", "        if True:\n",
        "tests/unit/test_subscribers.py",
    ),
    Mutation(
        "whoever has a stream keeps the others in line", "eventstream/asgi.py",
        "        self.leave_line()\n        if message", "        if message",
        "tests/integration/test_asgi.py::test_those_who_ask_for_streams_at_once_wait_in_line",
    ),
    Mutation(
        "a token is in the server's log", "eventstream/asgi.py",
        "        scope[_KEY] = handover\n", "        scope = {**scope, _KEY: handover}\n",
        "tests/acceptance/test_access.py::test_token_is_not_in_the_server_s_access_log",
    ),
    Mutation(
        "a client that is gone keeps its stream", "eventstream/hub/writing.py",
        "    gone.add_done_callback(task.cancel)\n", "    pass\n",
        "tests/integration/test_asgi.py::test_stream_outlives_its_request",
    ),
    Mutation(
        "the server hears Django's listener being cancelled", "eventstream/asgi.py",
        "asyncio.shield(self._wait())", "self._receive()",
        "tests/integration/test_asgi.py::test_server_may_take_a_cancelled_receive_for_the_client_s_end",
    ),
    Mutation(
        "a reset stands before events that come before it", "eventstream/pieces.py",
        "if log.is_reset and not parts:", "if log.is_reset:",
        "tests/integration/test_reading.py::test_page_is_read_in_several_queries_and_ends_before_what_was_pruned",
    ),
    Mutation(
        "a page of the log does not tell of kicks", "eventstream/hub/log.py",
        "if log.has_kicks else []", "if False else []",
        "tests/integration/test_hub.py::test_kick_is_found_with_the_events_that_fill_a_gap",
    ),
    Mutation(
        "an event numbered while nothing was found is a reset", "eventstream/log.py",
        "            last_eid = self.current_ids(using, [channel])[channel]\n            return self.read_after(", "            last_eid = self.current_ids(using, [channel])[channel]\n            return ChannelLog([], last_eid, is_reset=eid != last_eid) or self.read_after(",
        "tests/integration/test_reading.py::test_event_numbered_while_nothing_was_found_is_no_reset",
    ),
    Mutation(
        "an address is what the client claims", "eventstream/limits.py",
        "hops[-count]", "hops[0]",
        "tests/unit/test_limits.py::test_address_is_what_trusted_proxies_say",
    ),
    Mutation(
        "a run of events follows only the one before its last", "eventstream/targets/grip.py",
        "{last - len(bodies)}", "{last - 1}",
        "tests/unit/test_grip_target.py::test_neighbours_of_a_channel_are_one_item_from_id_to_id",
    ),
    Mutation(
        "a call is larger than was counted", "eventstream/targets/base.py",
        "added = sum([each.size for each in items])", "added = len(item.body)",
        "tests/unit/test_grip_target.py::test_call_is_no_larger_than_was_counted_and_hardly_smaller",
    ),
    Mutation(
        "a run of events passes over a hole", "eventstream/targets/base.py",
        "item.eid == eid + 1", "item.eid > 0",
        "tests/unit/test_grip_target.py::test_what_follows_a_hole_is_an_item_of_its_own",
    ),
    Mutation(
        "who may read again is named as kicked", "eventstream/relay.py",
        "        if found.has_kicks:", "        if False:",
        f"{RELAY}::test_who_may_read_again_is_not_named_as_kicked",
    ),
    Mutation(
        "what some may not have is joined", "eventstream/targets/grip.py",
        "row.eid is not None and not row.skip_users and not row.kicked", "row.eid is not None",
        "tests/unit/test_grip_target.py::test_only_what_all_streams_get_is_joined",
    ),
]  # fmt: skip


def copy(directory: Path) -> None:
    """Copy the code, and what tests it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, directory / name, ignore=ignore)
        else:
            shutil.copy(source, directory / name)


def run(
    directory: Path, *arguments: str, on_postgresql: bool, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy."""
    server = ["-m", "tests.support.postgres", "--", sys.executable]
    return subprocess.run(
        [sys.executable, *(server if on_postgresql else []), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=directory, capture_output=True, text=True, check=False,
        # What is compiled of the copy that is unchanged is copied with it.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **env},
    )  # fmt: skip


def is_noticed(mutation: Mutation, unchanged: Path, directory: Path) -> bool:
    """Say whether the named test fails on a copy with this change.

    Raises:
        LookupError: The text to change is not there: the list is out of date. Or the test
            came to nothing.
    """
    shutil.copytree(unchanged, directory, dirs_exist_ok=True)
    path = directory / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise LookupError(f"{mutation.name}: not once in {mutation.file}")
    path.write_text(text.replace(mutation.old, mutation.new))
    done = run(
        directory, "-x", f"--timeout={TIMEOUT}", mutation.test,
        on_postgresql=mutation.on_postgresql, ES_HISTORIES=str(HISTORIES),
    )  # fmt: skip
    # An error of a fixture, of an import, or of what starts the tests, is none of a test.
    has_failed = done.returncode == 1 and "\nFAILED " in done.stdout
    if done.returncode != 0 and not has_failed:
        raise LookupError(f"{mutation.name}: {done.stdout[-2000:]}{done.stderr[-500:]}")
    return has_failed


def try_out(unchanged: Path, mutation: Mutation) -> bool:
    """Say in print whether it is noticed, and return it."""
    with tempfile.TemporaryDirectory(prefix="es-mutant-") as directory:
        try:
            noticed = is_noticed(mutation, unchanged, Path(directory))
        except LookupError as error:
            noticed = False
            print(error)
    print(f"{'red   ' if noticed else 'MISSED'}  {mutation.name}", flush=True)
    return noticed


def pass_unchanged(mutations: list[Mutation], unchanged: Path) -> bool:
    """Say whether the named tests pass on a copy of the code as it is."""
    spread = ("-n", str(os.cpu_count()), "--dist", "loadfile")
    for on_postgresql in (False, True):
        tests = {m.test for m in mutations if m.on_postgresql is on_postgresql}
        if not tests:
            continue
        done = run(unchanged, *spread, *sorted(tests), on_postgresql=on_postgresql)
        if done.returncode != 0:
            print(done.stdout[-5000:], done.stderr[-500:])
            return False
    return True


def main() -> int:
    """Try them all, several at a time, as most only wait; return how many were missed."""
    words = sys.argv[1:]
    wanted = [
        each for each in MUTATIONS if not words or any(w in each.name for w in words)
    ]
    with tempfile.TemporaryDirectory(prefix="es-mutant-") as directory:
        copy(unchanged := Path(directory))
        if not pass_unchanged(wanted, unchanged):
            return len(wanted)
        with ThreadPoolExecutor(3 * (os.cpu_count() or 1)) as threads:
            return sum(
                not noticed
                for noticed in threads.map(partial(try_out, unchanged), wanted)
            )


if __name__ == "__main__":
    sys.exit(main())
