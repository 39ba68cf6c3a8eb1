"""The description of the API: made from the operations, committed, served, and complete."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING

import pytest
import schemathesis
from aiohttp import web

from tests.api.routes import EXAMPLES
from tests.support.grow import create, raise_fatal
from tests.support.wire import connected
from tlog.server.api import openapi, operation
from tlog.server.api.openapi import OF_A_LOG, OF_THE_SERVER, describe, main
from tlog.server.api.operation import Operation
from tlog.server.api.problems import PROBLEMS
from tlog.server.api.serve import make_app, make_runner
from tlog.server.config import read_config
from tlog.server.limit import Limits
from tlog.server.log import open_log

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Api

pytestmark = pytest.mark.invariant("I22", "I28")

OPERATIONS = (*OF_A_LOG, *OF_THE_SERVER)


def test_the_committed_description_is_what_the_operations_say() -> None:
    assert main(["--check"]) is None, "python -m tlog.server.api.openapi --write"


def test_a_description_that_differs_is_noticed_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openapi, "PATH", tmp_path / "openapi.json")
    for text in (None, "{}", openapi.format_document(describe()).replace("Treehead-Have", "Treehead-Has")):
        if text is not None:
            openapi.PATH.write_text(text)
        assert "--write" in str(main(["--check"]))
        assert main(["--write"]) is None
        assert main(["--check"]) is None
    assert "usage" in str(main([]))


def test_the_description_is_valid_openapi() -> None:
    schemathesis.openapi.from_path(openapi.PATH).validate()


def strings(value: object) -> set[str]:
    """Return every text in a JSON value, keys too."""
    if isinstance(value, dict):
        return {text for key, each in value.items() for text in {key, *strings(each)}}
    if isinstance(value, list):
        return {text for each in value for text in strings(each)}
    return {value} if isinstance(value, str) else set()


def test_no_request_has_a_field_for_an_address() -> None:
    document = json.loads(openapi.format_document(describe()))
    asked = [
        operation.get(part)
        for path in document["paths"].values()
        for operation in path.values()
        if isinstance(operation, dict)
        for part in ("parameters", "requestBody")
    ]
    names = {text.lower() for text in strings([part for part in asked if part])}
    assert "idempotency-key" in names
    assert not {name for name in names if name in {"uri", "url", "uri-reference", "iri", "hostname", "callback"}}


def without(each: Operation, name: str) -> Operation:
    """Declare an operation again, with a handler from which one type was removed."""
    handler = each.handler
    assert isinstance(handler, FunctionType)
    untyped = FunctionType(handler.__code__, handler.__globals__, handler.__name__)
    untyped.__doc__ = handler.__doc__
    untyped.__annotations__ = {key: value for key, value in handler.__annotations__.items() if key != name}
    declare = operation.operation(each.method, each.path, offers=each.offers, problems=each.problems)
    return replace(declare(untyped), headers=each.headers, problems=each.problems, pattern=each.pattern)


@pytest.mark.parametrize("each", OPERATIONS, ids=[each.handler.__name__ for each in OPERATIONS])
def test_a_handler_without_one_of_its_types_is_refused(each: Operation) -> None:
    names = [name for name in each.handler.__annotations__ if name not in ("request", "_")]
    assert "return" in names
    for name in names:
        with pytest.raises(TypeError, match=each.handler.__name__):
            without(each, name)


@pytest.mark.parametrize("each", OPERATIONS, ids=[each.handler.__name__ for each in OPERATIONS])
def test_another_type_in_a_handler_changes_the_description(each: Operation) -> None:
    assert without(each, "") is not None, "the same types are taken"
    committed = describe()
    changes = [replace(each, parameters=dict(list(each.parameters.items())[:-1]))] if each.parameters else []
    changes += [replace(each, body=None)] if each.body else []
    changes += [replace(each, answer=operation.Parameter)] if "application/json" in each.offers else []
    changes += [replace(each, offers=("text/x.tlog.proof",)), replace(each, problems=())]
    for changed in changes:
        of_a_log = [changed if one is each else one for one in OF_A_LOG]
        of_the_server = [changed if one is each else one for one in OF_THE_SERVER]
        try:
            assert describe(of_a_log=of_a_log, of_the_server=of_the_server) != committed
        except TypeError:
            continue  # a type without a schema cannot be described at all


def test_every_problem_is_documented_and_every_one_that_is_listed_exists() -> None:
    document = json.loads(openapi.PATH.read_text())
    types = {each.type for each in PROBLEMS}
    assert all(f"`{kind}`" in document["info"]["description"] for kind in types)
    for answer in document["components"]["responses"].values():
        schema = answer["content"]["application/problem+json"]["schema"]
        assert set(schema["allOf"][1]["properties"]["type"]["enum"]) <= types


async def test_every_route_of_the_server_is_an_operation(api: Api) -> None:
    app = make_app({"": api.log}, Limits())
    declared = {(each.method, each.pattern) for each in OPERATIONS}
    for route in app.router.routes():
        assert route.resource is not None
        owner = getattr(route.handler, "__self__", None)
        assert isinstance(owner, Operation) or route.method == "OPTIONS"
        if isinstance(owner, Operation):
            assert route.resource.canonical == owner.path, "what is counted is what is described"
            declared.discard((owner.method, owner.pattern))
    assert declared == set()
    assert set(EXAMPLES) == {each.path for each in OPERATIONS}


async def test_the_description_is_served(api: Api) -> None:
    response = await api.get("/openapi.json")
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    assert response.headers["cache-control"] == "no-store"
    assert json.loads(response.body) == json.loads(openapi.PATH.read_text())


async def test_a_server_of_several_logs_has_each_below_its_prefix(tmp_path: Path) -> None:
    create(tmp_path / "a", origin="localhost/a")
    create(tmp_path / "b", origin="localhost/b")
    async with AsyncExitStack() as stack:
        logs = {
            f"/logs/{name}": await stack.enter_async_context(
                open_log(read_config(tmp_path / name / "treehead.toml"), raise_fatal)
            )
            for name in ("a", "b")
        }
        runner = make_runner(logs, Limits())
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        connection = await stack.enter_async_context(connected(int(runner.addresses[0][1])))
        assert json.loads((await connection.request("GET", "/openapi.json")).body)["servers"] == [
            {"url": "/logs/a"},
            {"url": "/logs/b"},
        ]
        assert (await connection.request("POST", "/logs/a/add", b"one")).body == b"1"
        for name, size in (("a", 2), ("b", 1)):
            note = (await connection.request("GET", f"/logs/{name}/checkpoint")).body
            assert note.startswith(b"localhost/%b\n%d\n" % (name.encode(), size))
            assert (await connection.request("GET", f"/logs/{name}/tile/0/000.p/{size}")).status == 200
            assert (await connection.request("GET", f"/logs/{name}/tile/entries/000.p/{size}")).status == 200
            assert (await connection.request("GET", f"/logs/{name}/v1/entries/0")).status == 200
            preflight = await connection.request("OPTIONS", f"/logs/{name}/v1/entries")
            assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, "*")
            assert (await connection.request("GET", f"/logs/{name}/livez")).status == 404
        for path in ("/checkpoint", "/logs/checkpoint", "/logs/c/checkpoint", "/logs/ab/checkpoint"):
            response = await connection.request("GET", path)
            assert (response.status, response.headers["content-type"]) == (404, "application/problem+json")
        assert (await connection.request("GET", "/readyz")).status == 200
        logs["/logs/b"].fail()
        response = await connection.request("GET", "/readyz")
        assert response.status == 503
        assert b"localhost/b" in response.body
        assert b"localhost/a" not in response.body
