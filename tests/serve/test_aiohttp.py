"""What `tlog.server.api.protocol` uses of aiohttp and is not promised; what it does is tried in `test_deadlines`."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

USED = (
    "_close",
    "_current_request",
    "_force_close",
    "_lingering_time",
    "_messages",
    "_request_count",
    "_request_in_progress",
    "_waiter",
)


def test_these_are_of_the_version_that_was_looked_at() -> None:
    assert version("aiohttp").split(".")[:2] == ["3", "14"], "look at web_protocol.py again, then change this"


@pytest.mark.parametrize("name", USED)
def test_a_connection_has_its_state(name: str) -> None:
    assert name in RequestHandler.__slots__


@pytest.mark.parametrize("name", ["_upgraded", "_loop", "transport"])
def test_a_protocol_has_its_state(name: str) -> None:
    assert name in BaseProtocol.__slots__


def test_a_message_is_queued_with_its_body_before_data_received_returns() -> None:
    source = inspect.getsource(RequestHandler.data_received)
    assert "self._messages.append((msg, payload))" in source
    assert "self._request_count += 1" in source


def test_every_answer_is_logged_when_it_is_finished() -> None:
    source = inspect.getsource(RequestHandler.finish_response)
    assert source.count("self.log_access(request, resp, start_time)") == 2
    assert source.rindex("write_eof()") < source.rindex("self.log_access(")


def test_a_runner_makes_its_server_in_a_method_of_its_own() -> None:
    assert inspect.iscoroutinefunction(web.AppRunner._make_server)
    assert list(inspect.signature(web.Server.__init__).parameters)[1:3] == ["handler", "request_factory"]


def test_a_body_says_when_it_is_whole_and_takes_an_exception() -> None:
    assert "return self._eof" in inspect.getsource(StreamReader.is_eof)
    assert callable(StreamReader.set_exception)
    assert callable(StreamReader.exception)
