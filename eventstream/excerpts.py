"""The beginning of a text. Apart from the admin: template tags are loaded without it, too."""

from __future__ import annotations

EXCERPT_LENGTH = 80


def excerpt(text: str, length: int = EXCERPT_LENGTH) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text[: length + 1].split())
    return f"{line[:length]}…" if len(text) > length else line
