"""Orders: what the demo's events are about."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Order(models.Model):
    """An order. Each has one event, sent in the transaction that saves it."""

    item = models.CharField(max_length=100)
    quantity = models.PositiveSmallIntegerField()
    created = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[models.Manager[Order]] = models.Manager()

    def __str__(self) -> str:
        return f"{self.pk}: {self.quantity} of {self.item}"
