"""What a relay writes and asks for every batch, written out for PostgreSQL.

Django takes longer to put them together than PostgreSQL to execute them, and has no
`UPDATE … RETURNING`. On SQLite cursors.py says the same through Django.

No write here waits for the disk: to lose a confirmation repeats an id, to lose a lease costs
its time. So `synchronous_commit` is set for that transaction only, within the statement.
"""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.backends.utils import CursorWrapper


def open_cursor(using: str) -> CursorWrapper:
    """Return a cursor of Django's connection, for statements that are executed often.

    PostgreSQL keeps them prepared where `OPTIONS["prepare_threshold"]` says that it may:
    planning takes it longer than executing. Django's own cursors never prepare, unless
    the whole project binds on the server, since they send values within the statement.
    """
    connection = connections[using]
    connection.ensure_connection()
    raw: Any = connection.connection
    if getattr(raw, "prepare_threshold", None) is None:
        return connection.cursor()
    import psycopg  # noqa: PLC0415  there is none without PostgreSQL

    django_factory = raw.cursor_factory
    raw.cursor_factory = psycopg.Cursor
    try:
        return connection.cursor()
    finally:
        raw.cursor_factory = django_factory


# By a range and in the order of the partial index. With `= … ORDER BY id`, or without an
# order, PostgreSQL takes the primary key or the table instead while its statistics are those
# of a backlog, and passes all that is in the log: "many are such, so the first comes soon".
FIRST_UNNUMBERED = """
  SELECT id FROM {event}
  WHERE partition BETWEEN %(partition)s AND %(partition)s AND position IS NULL
  ORDER BY partition, id LIMIT 1
"""

# More than a relay reads at first. With few it costs what the few do.
IS_BEHIND = """
  SELECT id FROM {event}
  WHERE partition BETWEEN %(partition)s AND %(partition)s AND position IS NULL
  ORDER BY partition, id OFFSET %(few)s LIMIT 1
"""

FIRST_KICK = """
  SELECT id FROM {event}
  WHERE partition BETWEEN %(partition)s AND %(partition)s AND kind = 1
    AND position > %(kicks_above)s
  ORDER BY partition, position LIMIT 1
"""

IS_PAUSED = "EXISTS (SELECT 1 FROM {paused} WHERE name = %(target)s)"

TAKE = """
UPDATE {cursor} c SET lease_token = %(token)s,
  lease_until = statement_timestamp() + %(lease)s * interval '1 second'
WHERE c.partition = %(partition)s AND c.target = %(target)s
  AND (c.lease_until IS NULL OR c.lease_until < statement_timestamp())
  AND NOT EXISTS (SELECT 1 FROM {paused} WHERE name = %(target)s)
  AND set_config('synchronous_commit', 'off', true) = 'off'
RETURNING ARRAY(SELECT target FROM {cursor} WHERE partition = %(partition)s), c.watermark,
  c.attempts > 0, coalesce(
    c.failing_since < statement_timestamp() - %(backlog)s * interval '1 second', false
  ), coalesce(
    c.confirmed_at > statement_timestamp() - %(lively)s * interval '1 second', false
  ), ({is_behind}) IS NOT NULL
"""

TAKE_IF_DUE = TAKE.replace(
    "RETURNING",
    """
  AND (c.next_attempt IS NULL OR c.next_attempt <= statement_timestamp())
  AND NOT (c.attempts = 0 AND EXISTS (
    SELECT 1 FROM {cursor} o
    WHERE o.target = %(target)s AND o.partition <> %(partition)s AND o.attempts > 0
      AND o.next_attempt > statement_timestamp() - %(stale)s * interval '1 second'
      AND NOT coalesce(o.confirmed_at > o.failing_since, false)
  ))
RETURNING""",
)

CONFIRM = """
UPDATE {cursor} c SET watermark = %(position)s,
  lease_until = statement_timestamp() + %(lease)s * interval '1 second',
  attempts = 0, next_attempt = NULL, failing_since = NULL, last_error = '',
  confirmed_at = statement_timestamp(),
  confirmed_count = c.confirmed_count + %(event_count)s,
  latency = coalesce(%(latency)s * interval '1 second', c.latency)
WHERE c.partition = %(partition)s AND c.target = %(target)s
  AND c.lease_token = %(token)s AND c.watermark <= %(position)s
  AND set_config('synchronous_commit', 'off', true) = 'off'
RETURNING ({first_unnumbered}) IS NOT NULL OR EXISTS (
    SELECT 1 FROM {partition}
    WHERE number = %(partition)s AND last_position > %(position)s
  )
"""

RELEASE = """
UPDATE {cursor} c SET lease_token = '', lease_until = NULL
WHERE c.partition = %(partition)s AND c.target = %(target)s
  AND c.lease_token = %(token)s
  AND set_config('synchronous_commit', 'off', true) = 'off'
"""

LOOK = """
SELECT 1 FROM {cursor} c WHERE c.partition = %(partition)s AND c.target = %(target)s AND (
  ({first_unnumbered}) IS NOT NULL OR EXISTS (
    SELECT 1 FROM {partition}
    WHERE number = %(partition)s AND last_position > c.watermark
  )
)
"""
