"""What is said in the rooms of both chats."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models, transaction

from eventstream import send_event


class Message(models.Model):
    """One message. Rooms are but a name."""

    room = models.CharField(max_length=64, db_index=True)
    user = models.CharField(max_length=64)
    text = models.TextField()
    created = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[models.Manager[Message]] = models.Manager()

    def __str__(self) -> str:
        return f"{self.user}: {self.text}"

    def as_data(self) -> dict[str, Any]:
        return {"id": self.pk, "user": self.user, "text": self.text}


def say(room: str, user: str, text: str) -> Message:
    """Keep a message and tell the room, or do neither."""
    with transaction.atomic():
        message = Message.objects.create(room=room, user=user, text=text)
        send_event(f"room-{room}", "message", message.as_data())
    return message


def last_messages(room: str, count: int = 50) -> list[dict[str, Any]]:
    """Return the newest messages of a room, the oldest of them first."""
    rows = Message.objects.filter(room=room).order_by("-pk")[:count]
    return [message.as_data() for message in reversed(rows)]
