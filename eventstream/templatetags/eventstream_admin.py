"""What the operators' pages need in their templates."""

from __future__ import annotations

import datetime
import re
from typing import Any

from django import template
from django.contrib.admin.utils import quote
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe

from eventstream.excerpts import excerpt
from eventstream.models import UndeliveredEvent
from eventstream.words import describe_count, describe_seconds

register = template.Library()

_CODE = re.compile(r"`([^`]+)`")
_WORDS = {"ok": "all well", "warning": "look at this", "error": "not delivering"}


@register.filter
def duration(seconds: float | None) -> str:
    """Return "12 min" for 720 seconds, and a dash for None."""
    return "—" if seconds is None else describe_seconds(seconds)


@register.filter
def grouped(number: int) -> str:
    """Return 1,204 for 1204."""
    return f"{number:,}"


@register.filter
def counted(number: int, noun: str) -> str:
    """Return "1 event", or "1,204 events"."""
    return describe_count(number, noun)


@register.filter
def instant(at: datetime.datetime | None) -> SafeString | str:
    """Return a <time> of an instant: the time, and the day unless it is today."""
    if at is None:
        return "—"
    at = timezone.localtime(at)
    now = timezone.localtime(datetime.datetime.now(datetime.UTC))
    is_today = at.date() == now.date()
    text = date_format(at, "H:i:s" if is_today else "Y-m-d H:i:s")
    return format_html('<time datetime="{}">{}</time>', at.isoformat(), text)


@register.filter
def with_code(text: str) -> SafeString:
    """Escape a text, and set what stands between backticks as code."""
    return mark_safe(_CODE.sub(r"<code>\1</code>", escape(text)))  # noqa: S308  escaped before


register.filter("excerpt", excerpt)


@register.filter
def level_word(level: str) -> str:
    """Return the word for a level: colour alone tells nothing to some."""
    return _WORDS[str(level)]


@register.filter
def admin_quote(key: int | str) -> str:
    """Quote a primary key as the admin does in its paths."""
    return str(quote(key))


@register.simple_tag(takes_context=True)
def eventstream_landing(context: template.Context) -> SafeString:
    """Render the undelivered events: the page that the app's index begins with."""
    request = context["request"]
    # Set by AdminSite on each of its views; there may be several sites.
    site = request.resolver_match.func.admin_site
    page: Any = site.get_model_admin(UndeliveredEvent)
    text: SafeString = page.render_body(request)
    return text


@register.simple_tag(takes_context=True)
def eventstream_tabs(context: template.Context) -> list[dict[str, object]]:
    """Return the operators' pages that the user may see."""
    request = context["request"]
    labels = {
        "undeliveredevent": "Undelivered",
        "sample": "Overview",
        "pausedtarget": "Targets",
        "channel": "Channels",
        "event": "Events",
        "deadletter": "Dead letters",
        "cursor": "Deliveries",
        "job": "Jobs",
    }
    tabs = []
    for name, label in labels.items():
        permission = "event" if name == "undeliveredevent" else name
        if request.user.has_perm(f"eventstream.view_{permission}"):
            url = reverse(
                f"admin:eventstream_{name}_changelist",
                current_app=getattr(request, "current_app", None),
            )
            tabs.append(
                {
                    "label": label,
                    "url": url,
                    "is_current": request.path == url
                    or (name == "undeliveredevent" and request.path == _index(request))
                    or (name != "undeliveredevent" and request.path.startswith(url)),
                }
            )
    return tabs


def _index(request: Any) -> str:
    return reverse(
        "admin:app_list",
        args=["eventstream"],
        current_app=getattr(request, "current_app", None),
    )
