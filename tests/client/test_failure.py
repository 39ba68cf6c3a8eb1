"""What goes wrong on a network is said in a sentence of ours, for both kinds of client."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tlog.errors import UnavailableError
from tlog.fetch import fetch_checkpoint
from tlog_client import run
from tlog_client.failure import UnreachableError, network_error
from tlog_client.run import AsyncRunner, SyncRunner

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

BOTH = pytest.mark.parametrize("kind", ["async", "sync"])


async def fail(kind: str, url: str) -> UnavailableError:
    """Ask for a checkpoint, and return why there is none."""

    async def ask() -> None:
        if kind == "async":
            async with AsyncRunner(url) as runner:
                await runner.run(fetch_checkpoint())
        else:
            with SyncRunner(url) as sync:
                await asyncio.to_thread(sync.run, fetch_checkpoint())

    with pytest.raises(UnavailableError) as caught:
        await ask()
    return caught.value


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await talk(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def close(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    pass


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def half(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")


async def other(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-x\r\n\r\n")


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


@BOTH
@pytest.mark.parametrize(
    ("talk", "sentence"),
    [
        (close, "{} closed the connection before its answer was complete"),
        (reset, "{} closed the connection before its answer was complete"),
        (half, "{} closed the connection before its answer was complete"),
        (other, "what answers at {} does not speak HTTP"),
        (silent, "the answer of {} took longer than 0.3 s"),
    ],
)
async def test_a_server_that_does_not_answer_as_it_should(
    kind: str, talk: Talk, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TOTAL_TIMEOUT", 0.3)
    async with listening(talk) as place:
        error = await fail(kind, f"http://{place}")
    assert str(error) == sentence.format(place)
    assert not isinstance(error, UnreachableError)


@BOTH
@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:1", "nothing listens at 127.0.0.1:1"),
        ("http://localhost:1", "nothing listens at localhost:1"),
        ("http://no-such-log.invalid", "the name no-such-log.invalid cannot be resolved"),
    ],
)
async def test_nobody_there(kind: str, url: str, sentence: str) -> None:
    error = await fail(kind, url)
    assert str(error) == sentence
    assert isinstance(error, UnreachableError)


@BOTH
async def test_no_tls_where_it_was_asked_for(kind: str) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await talk(reader, writer)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        error = await fail(kind, f"https://{place}")
    assert str(error) == f"no TLS with {place}; perhaps its address begins with http://"
    assert isinstance(error, UnreachableError)


def test_a_certificate_that_is_not_valid_says_why() -> None:
    reason = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]")
    reason.verify_message = "certificate has\nexpired"
    wrapped = RuntimeError(reason)
    error = network_error("https://log.example/", wrapped, 1)
    assert str(error) == "the TLS certificate of log.example is not valid: certificate hasexpired"


def test_what_nobody_knows_is_still_a_sentence_and_never_the_librarys_words() -> None:
    loop = RuntimeError("HTTPConnectionPool(host='x')")
    loop.__context__ = loop
    assert str(network_error("http://log.example:80/", loop, 1)) == "no answer from log.example:80"
    assert str(network_error("http://log.example/", OSError(113, "x"), 1)) == "log.example cannot be reached from here"
