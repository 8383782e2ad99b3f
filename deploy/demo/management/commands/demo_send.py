"""`manage.py demo_send 5`: place orders from a process of its own."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deploy.demo.orders import place_orders


class Command(BaseCommand):
    help = "Place orders, which appear on the demo's board."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("count", type=int, nargs="?", default=1)
        parser.add_argument("--rollback", action="store_true")

    def handle(self, *args: Any, count: int, rollback: bool, **options: Any) -> None:
        numbers = place_orders(count, is_rolled_back=rollback)
        self.stdout.write(" ".join(map(str, numbers)))
