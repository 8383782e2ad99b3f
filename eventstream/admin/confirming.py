"""The page between a button and what it does: nothing happens by one click or by a link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.admin import ModelAdmin
from django.http import HttpRequest
from django.template.response import TemplateResponse

REASON_LENGTH = 500


@dataclass(frozen=True)
class Question:
    """What the user is asked before an action.

    Attributes:
        title: What is going to be done, as a heading.
        text: What it means, and what it does not.
        items: What it is done to.
        button: The verb on the button.
        fields: Names and values that come back with the answer.
        is_dangerous: It cannot be taken back.
        asks_reason: There is a field for the reason.
    """

    title: str
    text: str
    items: Sequence[str]
    button: str
    fields: Sequence[tuple[str, str]]
    is_dangerous: bool = False
    asks_reason: bool = False


def is_confirmed(request: HttpRequest) -> bool:
    """Say whether the request is the answer to the question."""
    return request.method == "POST" and request.POST.get("confirmed") == "yes"


def reason_of(request: HttpRequest) -> str:
    """Return the reason that was given, on one line."""
    return " ".join(request.POST.get("reason", "").split())[:REASON_LENGTH]


def ask(
    admin: ModelAdmin[Any],
    request: HttpRequest,
    question: Question,
    *,
    parent: dict[str, str],
    action_url: str,
) -> TemplateResponse:
    """Return the page with the question. Its answer goes to `action_url`, by POST."""
    context = {
        **admin.admin_site.each_context(request),
        "title": question.title,
        "question": question,
        "parent": parent,
        "action_url": action_url,
        "reason_length": REASON_LENGTH,
    }
    return TemplateResponse(request, "admin/eventstream/confirm.html", context)
