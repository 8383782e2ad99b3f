"""Place orders: what an application would do."""

from __future__ import annotations

import random
import time

from django.db import transaction

from deploy.demo.models import Order
from eventstream import send_event

CHANNEL = "orders"
_ITEMS = ["Espresso", "Cappuccino", "Flat white", "Green tea", "Croissant", "Scone"]


def place_orders(count: int, *, is_rolled_back: bool = False) -> list[int]:
    """Save orders and send an event for each, in one transaction; return their numbers."""
    numbers = []
    with transaction.atomic():
        for _ in range(count):
            order = Order.objects.create(
                item=random.choice(_ITEMS),  # noqa: S311  coffee
                quantity=random.randint(1, 4),  # noqa: S311
            )
            numbers.append(order.pk)
            send_event(CHANNEL, "message", describe(order))
        transaction.set_rollback(is_rolled_back)
    return numbers


def describe(order: Order) -> dict[str, object]:
    """Return what the page needs of an order; `sent_at` in seconds since the epoch."""
    return {
        "number": order.pk,
        "item": order.item,
        "quantity": order.quantity,
        "sent_at": time.time(),
    }
