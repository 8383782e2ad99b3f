"""The view set of docs/howto/drf.md that sends, run as it stands there."""

from __future__ import annotations

import re
import sys
import types
from typing import Any

import pytest
from django.contrib.auth.models import Group
from rest_framework.permissions import AllowAny
from rest_framework.serializers import ModelSerializer
from rest_framework.test import APIRequestFactory

from eventstream.testing import EventStreamTestClient
from tests.support.processes import ROOT

pytestmark = pytest.mark.django_db


class OrderSerializer(ModelSerializer[Group]):
    class Meta:
        model = Group
        fields = ["name"]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the page's code; its Order is a Group here."""
    text = (ROOT / "docs/howto/drf.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    [code] = [block for block in blocks if "ModelViewSet" in block]
    modules: dict[str, dict[str, Any]] = {
        "shop": {},
        "shop.models": {"Order": Group},
        "shop.serializers": {"OrderSerializer": OrderSerializer},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "drf.md", "exec"), names)
    return names


def test_what_is_created_is_sent_as_the_serializer_has_it(
    page: dict[str, Any], eventstream_client: EventStreamTestClient
) -> None:
    view = page["OrderViewSet"].as_view(
        {"post": "create"}, permission_classes=[AllowAny]
    )

    response = view(APIRequestFactory().post("/orders/", {"name": "tea"}))

    assert response.status_code == 201
    eventstream_client.assert_sent("orders", ("message", {"name": "tea"}))
