"""What independent parsers make of our bytes, and WHATWG's own tables.

httpx-sse, npm's eventsource-parser and the browser client's parser read what the encoder
has written, cut into any pieces. Source: WHATWG HTML, section 9.2.
"""

from __future__ import annotations

import base64
import codecs
import itertools
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import given
from hypothesis import strategies as st

from eventstream import sse
from eventstream.positions import format_position
from tests.support import sse as strict
from tests.support.node import BIN, JS, environment


class Read(NamedTuple):
    """What a parser dispatches: (type, data, last id) of each event; the last `retry`."""

    events: list[list[str]]
    retry: int | None


class Parsers:
    """All of them; those in JavaScript in one process for all examples."""

    def __init__(self) -> None:
        self._node = subprocess.Popen(
            [str(BIN / "node"), "parsers.ts"], cwd=JS, env=environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def read(self, chunks: Sequence[bytes]) -> dict[str, Read]:
        assert self._node.stdin
        assert self._node.stdout
        encoded = [base64.b64encode(chunk).decode() for chunk in chunks]
        self._node.stdin.write(json.dumps({"chunks": encoded}) + "\n")
        self._node.stdin.flush()
        answers = json.loads(self._node.stdout.readline())
        read = {name: Read(**answer) for name, answer in answers.items()}
        return {**read, "httpx-sse": _by_httpx_sse(chunks)}

    def close(self) -> None:
        assert self._node.stdin
        assert self._node.stdout
        self._node.stdin.close()
        self._node.wait(10)
        self._node.stdout.close()


def _by_httpx_sse(chunks: Sequence[bytes]) -> Read:
    lines, events = SSELineDecoder(), SSEDecoder()
    text = codecs.getincrementaldecoder("utf-8")("replace")
    read = Read([], None)
    for chunk in chunks:
        for line in lines.decode(text.decode(chunk)):
            event = events.decode(line)
            if event is None:
                continue
            read.events.append([event.event or "message", event.data, event.id])
            if event.retry is not None:
                read = read._replace(retry=event.retry)
    return read


@pytest.fixture(scope="module")
def parsers() -> Iterator[Parsers]:
    parsers = Parsers()
    yield parsers
    parsers.close()


# Whatever can be UTF-8: sending refuses lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINES = st.lists(
    st.one_of(
        TEXT, st.sampled_from(["\r", "\n", "\r\n", ":", " ", "data: x", "id", "\ufeff"])
    )
).map("".join)
NAMES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1)
POSITIONS = st.dictionaries(NAMES, st.integers(0, 2**63 - 1), min_size=1, max_size=3)
EVENTS = st.lists(
    st.tuples(NAMES, LINES, st.none() | POSITIONS.map(format_position)), max_size=4
)
CUTS = st.lists(st.floats(0, 1), max_size=6)


def cut(text: bytes, places: Sequence[float]) -> list[bytes]:
    ends = sorted({int(place * len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


@given(EVENTS, CUTS)
def test_every_parser_reads_what_was_written(
    parsers: Parsers, events: list[tuple[str, str, str | None]], cuts: list[float]
) -> None:
    opening = sse.encode_preamble(16, 1500, "a:1", head="a:9", keep_alive=20)
    written = opening + sse.KEEP_ALIVE
    expected = [
        ["stream-open", '{"head": "a:9", "keep_alive": 20}', "a:1"],
        ["keep-alive", "", "a:1"],
    ]
    position = "a:1"
    for event_type, data, event_id in events:
        written += sse.encode_event(event_type, data, event_id)
        position = event_id or position
        expected.append([event_type, re.sub("\r\n?", "\n", data), position])
    written += sse.FAREWELL

    chunks = cut(written.encode(), cuts)

    for name, read in parsers.read(chunks).items():
        assert read == Read(expected, 1500), name
    # The one that the other tests read by.
    messages = [m for p in [strict.Parser()] for chunk in chunks for m in p.feed(chunk)]
    assert [[m.type, m.data, m.id] for m in messages] == expected


@given(EVENTS, CUTS)
def test_resets_and_errors_are_read_between_events(
    parsers: Parsers, events: list[tuple[str, str, str | None]], cuts: list[float]
) -> None:
    names = sorted({name for name, _, _ in events})
    written = sse.encode_reset(names, "a:1") + sse.encode_error("x", "y\n\nid: 3")

    for name, read in parsers.read(cut(written.encode(), cuts)).items():
        [reset, error] = read.events
        assert reset[::2] == ["stream-reset", "a:1"], name
        assert json.loads(reset[1]) == {"channels": names}, name
        assert error[::2] == ["stream-error", "error"], name
        assert json.loads(error[1])["text"] == "y\n\nid: 3", name


# --- bytes: what the specification's grammar has for each


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        # event = *( comment / field ) end-of-line; a space after the colon is not data.
        (("message", "x", None), b"event: message\ndata: x\n\n"),
        (("message", " x", "c:1"), b"id: c:1\nevent: message\ndata:  x\n\n"),
        (("message", "", "c:1"), b"id: c:1\nevent: message\ndata: \n\n"),
        # end-of-line = ( cr lf / cr / lf ): each begins a new data line.
        (("m", "a\rb", None), b"event: m\ndata: a\ndata: b\n\n"),
        (("m", "a\nb", None), b"event: m\ndata: a\ndata: b\n\n"),
        (("m", "a\r\nb", None), b"event: m\ndata: a\ndata: b\n\n"),
        (("m", "a\n\rb", None), b"event: m\ndata: a\ndata: \ndata: b\n\n"),
        (("m", "\n", None), b"event: m\ndata: \ndata: \n\n"),
        # Other separators of Unicode and of Python's splitlines end no line.
        (("m", "\x0b\x0c\x1c\x85\u2028", None),
         b"event: m\ndata: \x0b\x0c\x1c\xc2\x85\xe2\x80\xa8\n\n"),
        # any-char = %x0000-0009 / %x000B-000C / %x000E-10FFFF
        (("m", "\0\t", None), b"event: m\ndata: \0\t\n\n"),
        (("m", "\U0010ffff", None), b"event: m\ndata: \xf4\x8f\xbf\xbf\n\n"),
        # A BOM is one only at the beginning of the stream, where the padding is.
        (("m", "\ufeff", None), b"event: m\ndata: \xef\xbb\xbf\n\n"),
        # name-char has no colon; a value may have any.
        (("a:b", "c:d", "e:1,f:2"), b"id: e:1,f:2\nevent: a:b\ndata: c:d\n\n"),
        # "If the field value does not contain U+0000 NULL": an id with one would not count.
        (("m", "x", "c\0:1"), b"id: c:1\nevent: m\ndata: x\n\n"),
    ],
)  # fmt: skip
def test_event_is_these_bytes(
    arguments: tuple[str, str, str | None], written: bytes, parsers: Parsers
) -> None:
    event_type, data, event_id = arguments

    assert sse.encode_event(event_type, data, event_id).encode() == written

    lines = re.sub("\r\n?", "\n", data)
    expected = [event_type, lines, (event_id or "").replace("\0", "")]
    for name, read in parsers.read([written]).items():
        assert read.events == [expected], name


# --- the specification's examples, for the parser that the browser client has


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [["message", "YHOO\n+2\n10", ""]]),
        (": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n"
         "data:  third event",
         [["message", "first event", "1"], ["message", "second event", ""]]),
        ("data\n\ndata\ndata\n\ndata:", [["message", "", ""], ["message", "\n", ""]]),
        ("data:test\n\ndata: test\n\n", [["message", "test", ""]] * 2),
        ("event: add\rdata: 7\r\revent: del\r\ndata: 8\r\n\r\n",
         [["add", "7", ""], ["del", "8", ""]]),
        ("\ufeffdata: x\n\n", [["message", "x", ""]]),
        ("event: only\n\ndata: x\n\n", [["message", "x", ""]]),
        ("id: 1\ndata: a\n\nid: b\0\ndata: b\n\n",
         [["message", "a", "1"], ["message", "b", "1"]]),
        ("Data: x\n data: y\n:data: z\nother: w\ndata: v\n\n", [["message", "v", ""]]),
        ("retry: 1x\nretry:\nretry: -1\ndata: x\n\n", [["message", "x", ""]]),
    ],
)  # fmt: skip
def test_browser_client_reads_as_the_specification_has_it(
    stream: str, events: list[list[str]], parsers: Parsers
) -> None:
    text = stream.encode()

    for chunks in ([text], [text[i : i + 1] for i in range(len(text))]):
        assert parsers.read(chunks)["eventstream"] == Read(events, None)
