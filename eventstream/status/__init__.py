"""The health of the installation, in plain words, with what to do next.

The command, the health view, the admin's overview and the metrics all render what
`get_status` returns. It asks the database only, in a dozen queries whose cost does not
grow with the events stored, unless it is told to `ask` the bus, the broker and the proxies.
"""

from __future__ import annotations

from eventstream import conf
from eventstream.status.facts import (
    COUNT_LIMIT,
    LATE_SECONDS,
    Finding,
    HolderStatus,
    Level,
    Status,
    TargetStatus,
)
from eventstream.status.findings import judge
from eventstream.status.survey import Survey

__all__ = [
    "COUNT_LIMIT",
    "LATE_SECONDS",
    "Finding",
    "HolderStatus",
    "Level",
    "Status",
    "TargetStatus",
    "get_status",
]


def get_status(using: str | None = None, *, ask: bool = False) -> Status:
    """Return the health of one outbox.

    Args:
        using: Database alias; by default the first of EVENTSTREAM_DATABASES.
        ask: Ask bus, broker and proxies too, each bounded by its time limits: a few
            milliseconds if all is well, a few seconds for each that hangs.

    Raises:
        DatabaseError: The database does not answer, or is not migrated.
    """
    found = Survey(using or conf.get_options().databases[0], ask=ask).status()
    return judge(found)
