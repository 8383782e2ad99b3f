"""Moments of the database, which are the same ones whatever USE_TZ says."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

_Set = TypeVar("_Set", contravariant=True)
_Get = TypeVar("_Get", covariant=True)

if TYPE_CHECKING:
    from django.db.models import DateTimeField as _DateTimeField
else:

    class _DateTimeField(models.DateTimeField):
        def __class_getitem__(cls, types: object) -> type:
            return cls  # generic for the type checker only


class InstantField(_DateTimeField[_Set, _Get]):
    """A DateTimeField that is aware with `USE_TZ = False`, too.

    Django's is then a naive time of TIME_ZONE. An hour of those is left out each year and
    another comes twice, so that they cannot be subtracted, and on SQLite they are not what
    the database's own clock writes, which is UTC.
    """

    def deconstruct(self) -> tuple[str, str, list[Any], dict[str, Any]]:
        name, _, args, kwargs = super().deconstruct()
        # The column is the same: there is nothing to migrate.
        return str(name), "django.db.models.DateTimeField", list(args), dict(kwargs)

    def from_db_value(
        self, value: Any, expression: object, connection: BaseDatabaseWrapper
    ) -> Any:
        if value is None:
            return None
        return as_instant(value, datetime.UTC if _is_utc(connection) else None)

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        if not prepared:
            value = self.get_prep_value(value)
        if isinstance(value, datetime.datetime) and not settings.USE_TZ:
            value = as_instant(value)
            if _is_utc(connection):
                value = timezone.make_naive(value, datetime.UTC)
        return super().get_db_prep_value(value, connection, prepared=True)


def as_instant(
    value: datetime.datetime, zone: datetime.tzinfo | None = None
) -> datetime.datetime:
    """Return an aware datetime, of which any two can be compared and subtracted.

    With `USE_TZ = False` it shows the time of TIME_ZONE, as all of the project does, but
    by the offset of that moment: Python subtracts two times of one zone by their clocks.

    Args:
        value: If it is naive, a time of `zone`. PostgreSQL's driver says by `fold` which of
            two it is.
        zone: TIME_ZONE unless given.
    """
    here = timezone.get_default_timezone()
    if timezone.is_naive(value):
        value = value.replace(tzinfo=zone or here)
    if settings.USE_TZ:
        return value
    local = value.astimezone(here)
    offset = local.utcoffset() or datetime.timedelta()
    return local.replace(tzinfo=datetime.timezone(offset, local.tzname() or ""), fold=0)


def _is_utc(connection: BaseDatabaseWrapper) -> bool:
    """Say whether columns have no zone, so that they are what the clock writes: UTC."""
    return connection.vendor == "sqlite"
