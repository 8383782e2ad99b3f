"""Signals for applications. Each is sent after the transaction that it tells of."""

from __future__ import annotations

from django.dispatch import Signal

# Arguments: using (database alias), partition, event_count. Sent by whoever numbered,
# in that process only: the hub of the same process looks at the log at once.
events_numbered = Signal()

# Arguments: using, partition, target (name), event_count, position (the watermark).
events_confirmed = Signal()

# Arguments: using, target (name), event (models.Event), error (text).
event_dead_lettered = Signal()

# Arguments: rows (storage.OutboxRow). Best-effort events, on commit, in the sender's
# process only: the hub of the same process shows them where there is no bus.
events_sent_unstored = Signal()
