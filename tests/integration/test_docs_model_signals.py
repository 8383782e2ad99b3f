"""The example of docs/howto/model-signals.md, run as it stands there."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.core import serializers
from django.db import transaction
from django.db.models.signals import post_delete, post_save

from eventstream.testing import EventStreamTestClient
from tests.support.processes import ROOT

pytestmark = pytest.mark.django_db


@pytest.fixture
def receivers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's code; its Order is a Group here, and the item its name."""
    text = (ROOT / "docs/howto/model-signals.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shop = types.ModuleType("shop.models")
    monkeypatch.setattr(shop, "Order", Group, raising=False)
    monkeypatch.setitem(sys.modules, "shop", types.ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.models", shop)
    monkeypatch.setattr(Group, "item", property(lambda self: self.name), raising=False)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "model-signals.md", "exec"), names)
    yield
    post_save.disconnect(names["order_saved"], sender=Group)
    post_delete.disconnect(names["order_deleted"], sender=Group)


def test_changes_are_told_of_and_rolled_back_ones_are_not(
    receivers: None, eventstream_client: EventStreamTestClient
) -> None:
    group = Group.objects.create(name="tea")
    pk = group.pk
    group.name = "milk"
    group.save()
    with transaction.atomic():
        Group.objects.create(name="never")
        transaction.set_rollback(True)
    group.delete()

    eventstream_client.assert_sent(
        "orders",
        ("created", {"pk": pk, "item": "tea"}),
        ("changed", {"pk": pk, "item": "milk"}),
        ("deleted", {"pk": pk}),
    )


def test_fixtures_are_not_told_of(
    receivers: None, eventstream_client: EventStreamTestClient
) -> None:
    text = serializers.serialize("json", [Group(pk=1, name="tea")])

    for item in serializers.deserialize("json", text):
        item.save()

    eventstream_client.assert_nothing_sent()
