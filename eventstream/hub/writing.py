"""A stream, written to an ASGI server from within its own task."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from django.db import InterfaceError, OperationalError

from eventstream.hub.switchboard import get_hub

if TYPE_CHECKING:
    from eventstream.asgi import Gone, Send
    from eventstream.limits import Slot
    from eventstream.reading import Reader


async def write_stream(reader: Reader, slot: Slot, gone: Gone, send: Send) -> None:
    """Write a stream until it ends or the client is gone; its head has been sent."""
    hub = get_hub()
    subscriber = hub.enter(reader)
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  a coroutine runs in one
    gone.add_done_callback(task.cancel)
    try:
        while not subscriber.is_over:
            # Not by a name: what was written last would be kept until there is more.
            await send(
                {
                    "type": "http.response.body",
                    "body": await hub.advance(subscriber),
                    "more_body": True,
                }
            )
        await send({"type": "http.response.body", "body": b""})
    except asyncio.CancelledError:
        # That the client is gone ends the stream, and nothing else.
        if not gone.done() or gone.cancelled() or task.uncancel():
            raise
    except (OperationalError, InterfaceError) as error:
        hub.count_cut_off(error)
        with contextlib.suppress(OSError):
            await send({"type": "http.response.body", "body": b""})
    except OSError:
        pass  # what a server may say of a write to a client that is gone
    finally:
        hub.leave(subscriber)
        slot.release()
        gone.remove_done_callback(task.cancel)
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
