"""What a stream begins with where it has no position, in both holders."""

from __future__ import annotations

import asyncio
import datetime
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AbstractBaseUser, Group, User
from django.db import OperationalError, connections, transaction
from django.db.models.functions import Now
from django.test import Client
from pytest_django import Settings

from eventstream import jobs, send_event
from eventstream.channelmanager import DefaultChannelManager, InitialState
from eventstream.hub import get_hub, permissions
from eventstream.hub.beginnings import Beginnings
from eventstream.models import Event
from eventstream.reading import Reader, read_page
from eventstream.testing import drain_outbox
from tests.integration.test_hub import Stream, lose
from tests.integration.test_views import open_stream, read
from tests.support.holds import next_path
from tests.support.processes import wait_for
from tests.support.sse import Message, Parser

pytestmark = pytest.mark.django_db(transaction=True)

Hook = Callable[[AbstractBaseUser | None, str], Any]


class ChannelManager(DefaultChannelManager):
    """`groups…` has the names of all groups as its state; tests put in other hooks."""

    hook: Hook | None = None
    after: Callable[[], object] | None = None
    calls = 0

    def can_read_channel(self, user: AbstractBaseUser | None, channel: str) -> bool:
        return not channel.startswith("mine") or user is not None

    def is_channel_reliable(self, channel: str) -> bool:
        return not channel.startswith("live")

    def get_initial_state(self, user: AbstractBaseUser | None, channel: str) -> Any:
        ChannelManager.calls += 1
        if ChannelManager.hook is not None:
            return ChannelManager.hook(user, channel)
        if channel.startswith("plain"):
            return None
        names = list(Group.objects.order_by("pk").values_list("name", flat=True))
        if ChannelManager.after is not None:
            ChannelManager.after()
        return InitialState(names)


@pytest.fixture
async def manager(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[type[ChannelManager]]:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.ChannelManager"
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    for name, value in (("hook", None), ("after", None), ("calls", 0)):
        monkeypatch.setattr(ChannelManager, name, value)
    yield ChannelManager
    await get_hub().close()
    await sync_to_async(connections.close_all)()


def add(name: str, channel: str = "groups") -> None:
    """Change the state and tell of it, in one transaction."""
    with transaction.atomic():
        Group.objects.create(name=name)
        send_event(channel, "message", name)
    drain_outbox()


def page(reader: Reader, **arguments: Any) -> list[Message]:
    return Parser().feed(read_page(reader, **arguments).text.encode())


async def first(count: int, *channels: str, **arguments: Any) -> list[Message]:
    """Return the hub's first events for a new stream, the preamble included."""
    stream = Stream(*channels, **arguments)
    try:
        return [await stream.next() for _ in range(count)]
    finally:
        await stream.close()


# --- what comes, and with which id


async def test_new_stream_begins_with_the_state_and_its_position(
    manager: type[ChannelManager],
) -> None:
    await sync_to_async(add)("a")
    await sync_to_async(add)("b")

    opened, state = await first(2, "groups")
    [same] = await sync_to_async(page)(Reader(("groups",), ""), is_opening=True)

    # Not "groups:2": who is cut off here has not had the state, and must ask for it again.
    assert (opened.type, opened.id) == ("stream-open", "")
    assert (state.type, state.id) == ("initial-state", "groups:2")
    assert json.loads(state.data) == ["a", "b"]
    assert same == state


async def test_state_is_read_again_if_the_log_has_lost_its_end_meanwhile(
    manager: type[ChannelManager],
) -> None:
    """After its place there are other events by then, or none."""
    is_asked, may_go_on = threading.Event(), threading.Event()

    def hook(user: AbstractBaseUser | None, channel: str) -> InitialState:
        number = manager.calls
        is_asked.set()
        assert may_go_on.wait(30)
        return InitialState(number)

    manager.hook = staticmethod(hook)
    for name in "abc":
        await sync_to_async(add)(name)
    reading = asyncio.create_task(first(2, "groups"))
    assert await asyncio.to_thread(is_asked.wait, 30)
    await lose(1, "groups")
    await get_hub().look()
    # Whoever comes now shares no read that began before.
    following = asyncio.create_task(first(2, "groups"))
    await asyncio.sleep(0.2)
    may_go_on.set()

    for _, state in await asyncio.gather(reading, following):
        assert state.id == "groups:1"
        assert int(state.data) > 1


async def test_stream_that_resumes_gets_events_and_no_state(
    manager: type[ChannelManager],
) -> None:
    await sync_to_async(add)("a")
    await sync_to_async(add)("b")

    messages = await first(2, "groups", groups=1)
    same = await sync_to_async(page)(Reader(("groups",), "", {"groups": 1}))

    assert [(m.type, m.id) for m in messages] == [
        ("stream-open", "groups:1"),
        ("message", "groups:2"),
    ]
    assert json.loads(messages[0].data)["states"] == 0
    assert same == messages[1:]
    assert manager.calls == 0


async def test_reset_is_followed_by_the_state(manager: type[ChannelManager]) -> None:
    def prepare() -> None:
        add("a")
        Event.objects.update(created=Now() - datetime.timedelta(days=2))
        jobs.prune("default")
        add("b")

    await sync_to_async(prepare)()

    messages = await first(3, "groups", groups=0)
    same = await sync_to_async(page)(Reader(("groups",), "", {"groups": 0}))

    # The reset's id is empty: a client that is cut off before the state begins anew.
    assert [(m.type, m.id) for m in messages] == [
        ("stream-open", "groups:0"),
        ("stream-reset", ""),
        ("initial-state", "groups:2"),
    ]
    assert json.loads(messages[2].data) == ["a", "b"]
    assert same == messages[1:]


async def test_each_channel_begins_where_it_is(manager: type[ChannelManager]) -> None:
    def prepare() -> None:
        add("a", "groups")
        add("b", "groups2")
        add("c", "plain")
        add("d", "old")

    await sync_to_async(prepare)()
    channels = ("groups", "groups2", "old", "plain")

    messages = await first(4, *channels, old=0)
    same = await sync_to_async(page)(Reader(channels, "", {"old": 0}), is_opening=True)

    assert [(m.type, m.id) for m in messages] == [
        ("stream-open", "old:0,plain:1"),
        ("initial-state", "groups:1,old:0,plain:1"),
        ("initial-state", "groups:1,groups2:1,old:0,plain:1"),
        ("message", "groups:1,groups2:1,old:1,plain:1"),
    ]
    assert json.loads(messages[0].data)["states"] == 2
    assert same == messages[1:]


async def test_best_effort_channel_begins_with_its_state_whenever_it_is_opened(
    manager: type[ChannelManager],
) -> None:
    await sync_to_async(Group.objects.create)(name="a")

    _, state = await first(2, "live")
    reader = Reader(("live",), "")
    [same] = await sync_to_async(page)(reader, is_opening=True)

    assert (state.type, state.id, state.data) == ("initial-state", "", '["a"]')
    assert same == state
    assert await sync_to_async(page)(reader) == []  # a next link: it is not opened anew


async def test_state_is_the_users_own(manager: type[ChannelManager]) -> None:
    manager.hook = lambda user, channel: InitialState(
        user.get_username() if user else "nobody", event_type="you"
    )
    user = await sync_to_async(User.objects.create)(username="ann")

    for user_id, name in ((str(user.pk), "ann"), ("", "nobody")):
        _, state = await first(2, "groups", user_id=user_id)
        [same] = await sync_to_async(page)(Reader(("groups",), user_id))

        assert (state.type, json.loads(state.data)) == ("you", name)
        assert same == state


async def test_hook_may_be_async(manager: type[ChannelManager]) -> None:
    async def hook(user: AbstractBaseUser | None, channel: str) -> InitialState:
        return InitialState([group.name async for group in Group.objects.all()])

    manager.hook = hook
    await sync_to_async(add)("a")

    _, state = await first(2, "groups")
    [same] = await sync_to_async(page)(Reader(("groups",), ""))

    assert (state.data, state.id) == ('["a"]', "groups:1")
    assert same == state


def test_proxy_is_given_the_state_and_holds_from_its_position(
    manager: type[ChannelManager], proxy: dict[str, str]
) -> None:
    add("100 %")

    response = open_stream(proxy, "channel=groups")

    assert [(m.type, m.id, m.data) for m in read(response)] == [
        ("stream-open", "", '{"head": "groups:1", "keep_alive": 20, "states": 1}'),
        ("initial-state", "groups:1", '["100 %%"]'),  # as the proxy expands it
    ]
    assert "events-groups; prev-id=1" in response["Grip-Channel"]


def test_state_that_is_too_large_for_a_hold_is_sent_on_with_a_link(
    manager: type[ChannelManager], proxy: dict[str, str]
) -> None:
    manager.hook = lambda user, channel: InitialState("x" * 200_000)
    add("a")

    response = open_stream(proxy, "channel=groups")

    assert "Grip-Hold" not in response
    assert read(response)[-1].type == "initial-state"
    turn = Client().get(next_path(response), headers=proxy)
    held = Client().get(next_path(turn), headers=proxy)
    assert ("Grip-Hold" in turn, turn.content) == (False, b"")
    assert (held["Grip-Hold"], read(held)) == ("stream", [])
    assert "events-groups; prev-id=1" in held["Grip-Channel"]


# --- nothing is between the state and the stream


async def test_event_that_commits_while_the_state_is_read_comes_by_the_stream(
    manager: type[ChannelManager],
) -> None:
    hub, names = get_hub(), iter(["b", "c"])

    def commit() -> None:
        add(next(names))  # too late for the state, and numbered
        head = Event.objects.count()
        wait_for(lambda: hub.channels["groups"].head == head, "the hub has heard of it")

    manager.after = commit
    await sync_to_async(add)("a")
    stream = await Stream("groups").open()

    state = await stream.next()
    assert (json.loads(state.data), state.id) == (["a"], "groups:1")
    event = await stream.next()
    assert (json.loads(event.data), event.id) == ("b", "groups:2")

    [state] = await sync_to_async(page)(Reader(("groups",), ""))
    await stream.close()
    assert (json.loads(state.data), state.id) == (["a", "b"], "groups:2")
    reader = Reader(("groups",), "", {"groups": 2})
    [event] = await sync_to_async(page)(reader)
    assert (json.loads(event.data), event.id) == ("c", "groups:3")


async def test_readers_that_share_a_state_share_its_position(
    manager: type[ChannelManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    await sync_to_async(add)("a")
    one = await Stream("groups").open()  # so that the channel is known here
    await one.next()
    calls, hub = manager.calls, get_hub()
    is_read, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        is_read.set()
        assert goes_on.wait(15)

    async def until_subscribed(count: int) -> None:
        while not is_read.is_set() or len(hub.channels["groups"].subscribers) < count:  # noqa: ASYNC110  a dict tells nobody
            await asyncio.sleep(0.01)

    manager.after = wait
    streams = [Stream("groups") for _ in range(50)]
    opening = [asyncio.ensure_future(stream.open()) for stream in streams]
    await until_subscribed(51)
    await sync_to_async(add)("b")  # while the state, without it, is on its way
    await hub.look()
    await hub.channels.filled(hub.channels["groups"])
    assert hub.channels["groups"].head == 2
    late = Stream("groups")
    opening.append(asyncio.ensure_future(late.open()))
    await until_subscribed(52)
    await asyncio.sleep(0.05)  # it joins, and then asks for the state
    gone = opening.pop(0)  # and takes nobody along
    gone.cancel()
    await asyncio.wait([gone])
    goes_on.set()

    await asyncio.gather(*opening)

    assert manager.calls == calls + 1
    for stream in [*streams[1:], late]:
        state, event = await stream.next(), await stream.next()
        assert (json.loads(state.data), state.id) == (["a"], "groups:1")
        assert (json.loads(event.data), event.id) == ("b", "groups:2")
        await stream.close()
    await one.close()


async def test_slow_states_do_not_hold_up_the_log(
    manager: type[ChannelManager], settings: Settings
) -> None:
    started, end = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def hook(user: AbstractBaseUser | None, channel: str) -> InitialState:
        loop.call_soon_threadsafe(started.set)
        while not end.is_set():  # noqa: ASYNC110  another loop
            await asyncio.sleep(0.05)
        return InitialState([])

    manager.hook = hook
    await sync_to_async(add)("a", "plain")
    slow = [
        asyncio.ensure_future(Stream(f"groups{number}").open()) for number in range(6)
    ]
    await started.wait()

    [_, event] = await first(2, "plain", plain=0)

    assert event.id == "plain:1"
    assert not any(task.done() for task in slow)
    end.set()
    for stream in await asyncio.gather(*slow):
        await stream.close()


# --- what goes wrong


async def test_state_of_which_the_permission_is_withdrawn_meanwhile_is_not_sent(
    manager: type[ChannelManager],
) -> None:
    user = await sync_to_async(User.objects.create)(username="ann")

    manager.after = lambda: User.objects.update(is_active=False)

    messages = await first(2, "mine", user_id=str(user.pk))

    assert [m.type for m in messages] == ["stream-open", "stream-error"]


async def test_state_is_not_sent_if_the_permission_is_withdrawn_once_it_is_read(
    manager: type[ChannelManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await sync_to_async(User.objects.create)(username="ann")
    read_state, ask = Beginnings._ask, permissions.ask_permission
    is_withdrawn, may_answer = asyncio.Event(), threading.Event()

    async def withdraw(*arguments: Any) -> tuple[int, str]:
        found = await read_state(*arguments)
        await sync_to_async(User.objects.update)(is_active=False)
        get_hub().receive_kick("mine", str(user.pk))
        is_withdrawn.set()
        return found

    def wait(*arguments: Any) -> str:
        assert may_answer.wait(15)
        return ask(*arguments)

    monkeypatch.setattr(Beginnings, "_ask", withdraw)
    monkeypatch.setattr(permissions, "ask_permission", wait)
    reading = asyncio.create_task(first(2, "mine", user_id=str(user.pk)))
    await is_withdrawn.wait()
    await asyncio.wait([reading], timeout=0.5)
    assert not reading.done()
    may_answer.set()

    assert [m.type for m in await reading] == ["stream-open", "stream-error"]


def test_proxied_state_of_which_the_permission_is_withdrawn_meanwhile_is_not_sent(
    manager: type[ChannelManager], proxy: dict[str, str]
) -> None:
    user = User.objects.create(username="ann")
    manager.after = lambda: User.objects.update(is_active=False)
    client = Client()
    client.force_login(user)

    response = client.get("/events/?channel=mine", headers=proxy)

    assert [m.type for m in read(response)] == ["stream-error"]


def _raise() -> InitialState:
    raise LookupError("no such board")


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (lambda user, channel: _raise(), "no such board"),
        (lambda user, channel: InitialState("x" * 300_000), "the most is EVENTSTREAM_"),
        (lambda user, channel: InitialState(1, event_type="stream-open"), "protocol's"),
        (lambda user, channel: InitialState(object()), "cannot be encoded"),
    ],
    ids=["raises", "too large", "reserved type", "not JSON"],
)
async def test_stream_whose_state_cannot_be_had_ends_so_that_the_client_tries_again(
    manager: type[ChannelManager],
    proxy: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    hook: Hook,
    reason: str,
) -> None:
    manager.hook = hook

    with pytest.raises(StopAsyncIteration):
        await first(1, "groups")
    response = await sync_to_async(open_stream)(proxy, "channel=groups")

    assert "Grip-Hold" not in response
    assert read(response) == []
    assert [r.getMessage() for r in caplog.records] == [
        "No initial state of groups",
        "No initial state of groups",
    ]
    assert reason in caplog.text


async def test_state_whose_connection_was_cut_is_read_once_more(
    manager: type[ChannelManager], caplog: pytest.LogCaptureFixture
) -> None:
    def fail_once(user: AbstractBaseUser | None, channel: str) -> InitialState:
        if manager.calls == 1:
            raise OperationalError("the server closed the connection")
        return InitialState(["a"])

    manager.hook = fail_once

    [_, state] = await first(2, "groups")

    assert json.loads(state.data) == ["a"]
    assert not caplog.records


async def test_reset_whose_state_cannot_be_had_ends_the_stream_as_well(
    manager: type[ChannelManager], caplog: pytest.LogCaptureFixture
) -> None:
    manager.hook = lambda user, channel: _raise()
    stream = Stream("groups", groups=5)
    await stream.open()

    with pytest.raises(StopAsyncIteration):
        await stream.next()

    assert [r.getMessage() for r in caplog.records] == ["No initial state of groups"]


async def test_project_without_the_hook_pays_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    monkeypatch.setattr(Beginnings, "_read_state", None)

    stream = Stream("groups")
    assert (await stream.next()).id == "groups:0"
    await stream.close()
    await get_hub().close()
    await sync_to_async(connections.close_all)()
