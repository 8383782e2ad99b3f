"""`python standby.py PORT COMMAND…`: answer 502 on 127.0.0.1:PORT, and become the command.

With `--remove=DIRECTORY` before the port, that is removed when the command has ended.

Pushpin's second target, which it asks when no web process accepts a connection. It shares what
equal streams ask at once; of those that join an ask whose connection was refused it never
hears again, nor of any that joins later, while one that was answered is over for all. A
client that opens a stream gets an empty one, after which it comes back: at a 502 an
EventSource gives up for good. See docs/decisions/0014-a-standby-behind-pushpin.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import time

_BODY = b"No web process can be reached.\n"
_ANSWER = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)
_EMPTY_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    b"%sContent-Length: 0\r\nConnection: close\r\n\r\n"
)
_MAY_READ = (
    b"Access-Control-Allow-Origin: %s\r\nAccess-Control-Allow-Credentials: true\r\n"
)
"""Whatever the origin: there is nothing to read, and a page of one that is not named here
takes the answer for an error and gives up as well."""
_OPENING = re.compile(rb"GET .*\r\nAccept: *text/event-stream *\r\n", re.I | re.S)
"""What an EventSource sends, and Pushpin does not when it asks a stream's next link. Not a
POST, whose sender would take 200 for done."""
_ORIGIN = re.compile(rb"\r\nOrigin: *([^\r\n]+)", re.I)
_PATIENCE = 10.0
_ENDS = {signal.SIGINT, signal.SIGTERM}


def main() -> None:
    """Leave a child that answers, and replace this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--remove", metavar="DIRECTORY")
    parser.add_argument("port", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        listener = _listen(options.port)
    except OSError as error:
        _remove(options.remove)
        sys.exit(
            f"Pushpin's standby cannot listen on 127.0.0.1:{options.port} "
            f"({error.strerror}); choose another with PUSHPIN_STANDBY_PORT."
        )
    parent = os.getpid()
    # Held back until the child ignores them: it may be slow to begin.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    is_child = os.fork() == 0
    if is_child:
        # What is sent to the whole group ends the command, and that this process.
        for number in _ENDS:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
    if is_child:
        asyncio.run(_serve(listener, parent))
        _remove(options.remove)
        os._exit(0)
    listener.close()
    os.execvp(options.command[0], options.command)  # noqa: S606  without a shell


def _listen(port: int) -> socket.socket:
    """Take the port, which the child of a Pushpin that was killed has for a second more."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return socket.create_server(("127.0.0.1", port), backlog=1024)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _remove(directory: str | None) -> None:
    if directory:
        shutil.rmtree(directory, ignore_errors=True)


async def _serve(listener: socket.socket, parent: int) -> None:
    async with await asyncio.start_server(_answer, sock=listener):
        while os.getppid() == parent:  # noqa: ASYNC110  nothing tells of its end
            await asyncio.sleep(1)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(
        OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
    ):
        async with asyncio.timeout(_PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_respond(head))
            # A connection that is closed with a body unread is reset, and the answer lost.
            while await reader.read(65536):
                pass
    writer.close()


def _respond(head: bytes) -> bytes:
    if not _OPENING.match(head):
        return _ANSWER
    origin = _ORIGIN.search(head)
    return _EMPTY_STREAM % (_MAY_READ % origin[1] if origin else b"")


if __name__ == "__main__":
    main()
