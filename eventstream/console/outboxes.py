"""Several outboxes: one whose database is away keeps no other from being seen to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from django.core.management.base import CommandError
from django.db import DatabaseError, connections

from eventstream import conf

EXIT_UNKNOWN = 3


def has_several_outboxes() -> bool:
    """Say whether an outbox is to be named."""
    return len(conf.get_options().databases) > 1


def try_each(
    databases: Iterable[str], do: Callable[[str], object]
) -> dict[str, DatabaseError]:
    """Do something for each outbox; return what the databases that are away have said."""
    away = {}
    for using in databases:
        try:
            do(using)
        except DatabaseError as error:
            away[using] = error
            connections[using].close()
    return away


def describe_away(error: DatabaseError, using: str = "") -> str:
    """Return what is to be said of a database that is away."""
    name = f" {using!r}" if using and has_several_outboxes() else ""
    return (
        f"The database{name} does not answer, is not migrated, or refused what was asked: "
        f"{error}"
    )


def tell_away(away: Mapping[str, DatabaseError]) -> None:
    """End the command if any is.

    Raises:
        CommandError: It names them.
    """
    if away:
        text = "\n".join(describe_away(error, using) for using, error in away.items())
        raise CommandError(text.strip(), returncode=EXIT_UNKNOWN)
