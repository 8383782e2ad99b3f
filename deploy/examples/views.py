"""The clock, and the chat without and with Django REST framework."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from deploy.examples.models import Message, last_messages, say
from eventstream import get_current_event_id
from eventstream.drf import EventsViewSet


def home(request: HttpRequest) -> HttpResponse:
    return render(request, "examples/home.html")


def clock(request: HttpRequest) -> HttpResponse:
    return render(request, "examples/clock.html")


def chat(request: HttpRequest, room: str) -> HttpResponse:
    """Show a room. The position first: what is said meanwhile comes by the stream."""
    position = get_current_event_id([f"room-{room}"])
    context = {"room": room, "position": position, "messages": last_messages(room)}
    return render(request, "examples/chat.html", context)


@require_POST
def chat_message(request: HttpRequest, room: str) -> HttpResponse:
    user, text = request.POST.get("user", ""), request.POST.get("text", "")
    if not user or not text or len(user) > 64:
        return JsonResponse({"error": "user (at most 64) and text, please"}, status=400)
    return JsonResponse(say(room, user, text).as_data(), status=201)


def rest_chat(request: HttpRequest, room: str) -> HttpResponse:
    """Show a room that the stream fills: it begins with the state."""
    return render(request, "examples/rest_chat.html", {"room": room})


class MessageSerializer(serializers.ModelSerializer[Message]):
    class Meta:
        model = Message
        fields = ["id", "user", "text"]


class MessageViewSet(ViewSet):
    """What is said in a room."""

    def list(self, request: Request, room: str) -> Response:
        return Response(last_messages(room))

    def create(self, request: Request, room: str) -> Response:
        serializer = MessageSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        message = say(room, **serializer.validated_data)
        return Response(MessageSerializer(message).data, status=201)


class RoomEventsViewSet(EventsViewSet):
    """What is being said in a room."""

    def list(
        self, request: Request, *args: Any, room: str = "", **kwargs: Any
    ) -> HttpResponseBase:
        self.channels = [f"room-{room}"]
        return super().list(request, *args, **kwargs)
