"""Server-sent events: what a log sends is read byte for byte, and nothing is ever kept without bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlog.errors import FormatError
from tlog_client.event import MAX_EVENT_SIZE, MAX_LINE_SIZE, Event, EventReader

LINES = st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b"")), max_size=6)


def written(kind: bytes, data: bytes, newline: bytes = b"\n") -> bytes:
    lines = [b"event: " + kind, b"id: 7", *(b"data: " + line for line in data.split(b"\n")), b""]
    return b"".join(line + newline for line in lines)


def read(*chunks: bytes) -> list[Event]:
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


@given(st.lists(LINES), st.lists(st.integers(1, 40)), st.sampled_from([b"\n", b"\r\n"]))
def test_events_come_back_as_they_were_written_however_they_are_cut(
    notes: list[list[bytes]], cuts: list[int], newline: bytes
) -> None:
    data = [b"\n".join(lines) + b"\n" for lines in notes]
    stream = b": hello\n" + b"".join(written(b"checkpoint", one, newline) + b":\n" for one in data)
    chunks = []
    for cut in cuts:
        chunks.append(stream[:cut])
        stream = stream[cut:]
    assert read(*chunks, stream) == [Event(b"checkpoint", one) for one in data]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [Event(b"message", b"a")]),
        (b"data:a\ndata\ndata:  b\n\n", [Event(b"message", b"a\n\n b")]),
        (b"event: x\n\n", []),
        (b"event: x\n\ndata: a\n\n", [Event(b"message", b"a")]),
        (b"data: a\n", []),
        (b":data: a\n\nretry: 1\nunknown\nDATA: b\n\n", []),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
def test_what_is_no_field_is_ignored_and_what_is_incomplete_is_dropped(stream: bytes, events: list[Event]) -> None:
    assert read(stream) == events
    assert read(*[bytes([byte]) for byte in stream]) == events


@pytest.mark.parametrize(
    "chunks",
    [
        [b"x" * (MAX_LINE_SIZE + 1)],
        [b"x"] * (MAX_LINE_SIZE + 1),
        [b":" + b"x" * MAX_LINE_SIZE + b"\n"],
        [b"data: a\rdata: b\n"],
        [b"data: " + b"x" * 60_000 + b"\n"] * (MAX_EVENT_SIZE // 60_000 + 1),
        [b"data\n"] * (MAX_EVENT_SIZE + 1),
    ],
    ids=["line", "line in bytes", "comment", "lone CR", "event", "event of empty lines"],
)
def test_what_is_too_long_or_holds_a_lone_cr_is_refused(chunks: list[bytes]) -> None:
    with pytest.raises(FormatError):
        read(*chunks)
