"""Signals for applications. Each is sent after the transaction that it tells of.

By send_robust: a receiver that fails is logged by Django, and nothing else happens. A
receiver of events_confirmed delays its partition, so have it wake a task for real work.
"""

from __future__ import annotations

from django.dispatch import Signal

# Arguments: using (database alias), partition, event_count. Sent by whoever numbered,
# in that process only: the hub of the same process looks at the log at once.
events_numbered = Signal()

# Arguments: using, partition, target (name), event_count, position (the watermark). Sent by
# the relay, so in a worker, once the confirmation of a batch is committed: the target has
# accepted every event up to the position. A relay that dies in between sends none for that
# batch, or one for it again.
events_confirmed = Signal()

# Arguments: using, target (name), event (models.Event), error (text). Sent by whoever
# wrote the dead letter, once it is committed; not, if that process dies in between.
event_dead_lettered = Signal()

# Arguments: using, channel, target (name), since (when the first event that waits was
# written), reason (text). Sent by the sweep, once a minute for as long as it lasts, for a
# hundred channels of a target at most; not while the target is paused.
channel_stalled = Signal()

# Arguments: rows (rows.OutboxRow). Best-effort events, on commit, in the sender's
# process only: the hub of the same process shows them where there is no bus.
events_sent_unstored = Signal()
