"""The surface of the server, every operation once, and its description in OpenAPI 3.1.

    python -m tlog.server.api.openapi --write      write openapi.json beside this module
    python -m tlog.server.api.openapi --check      fail where it is not what the operations say

The description is made from the operations, whose types are those that their handlers use. It tells of one log at the
root; a server of several logs lists the prefix of each as a server of the description.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args, get_origin

from aiohttp import web
from msgspec import Meta

from tlog.fetch import PROBLEM_CBOR
from tlog.server.api import entries, health, metrics, proofs, static, stream
from tlog.server.api.answer import ProblemDetails, json_schemas
from tlog.server.api.keys import LOGS
from tlog.server.api.media import EVENTS, JSON, OCTETS, PROBLEM_JSON, TEXT, TLOG_PROOF
from tlog.server.api.operation import Operation, operation
from tlog.server.api.problems import PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tlog.server.api.problems import Problem

    Json = dict[str, object]

PATH = Path(__file__).with_name("openapi.json")

_TEXTS = {
    TEXT: "Text.",
    OCTETS: "Bytes.",
    EVENTS: "Server-sent events.",
    TLOG_PROOF: "A .tlog-proof file (c2sp.org/tlog-proof), which proves the entry offline.",
}

_ABOUT = """\
An append-only log whose every answer can be checked against a signed checkpoint.

Each answer in CBOR is deterministic (RFC 8949 §4.2.1), and a map with the same keys as the one in JSON; hashes, entries
and checkpoints are byte strings there. Errors are problem documents: in JSON (RFC 9457), or, where Accept wants CBOR
more, in CBOR (RFC 9290, with type and status in the entry 7807). Their types:

"""


@operation("GET", "/openapi.json", offers=(JSON,), is_public=False)
async def get_openapi(request: web.Request) -> dict[str, object]:
    """Read this description."""
    logs = request.app[LOGS]
    return describe(list(logs))


OF_A_LOG: tuple[Operation, ...] = (
    *static.OPERATIONS,
    *entries.OPERATIONS,
    *proofs.OPERATIONS,
    *stream.OPERATIONS,
)
"""What each log answers, below its prefix."""

OF_THE_SERVER: tuple[Operation, ...] = (*health.OPERATIONS, *metrics.OPERATIONS, get_openapi)
"""What the server answers, at its root."""


def describe(
    prefixes: Iterable[str] = ("",),
    of_a_log: Sequence[Operation] = OF_A_LOG,
    of_the_server: Sequence[Operation] = OF_THE_SERVER,
) -> Json:
    """Return the description of a server.

    Args:
        prefixes: Where the routes of each log begin.
        of_a_log: The operations of each log.
        of_the_server: The operations at the root.
    """
    types = _Schemas([*of_a_log, *of_the_server])
    paths: dict[str, Json] = {}
    for each in of_a_log:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, types)
    for each in of_the_server:
        paths.setdefault(each.path, {"servers": [{"url": "/"}]})[each.method.lower()] = _operation(each, types)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Treehead",
            "version": version("treehead"),
            "summary": "A transparency log that nobody can quietly edit.",
            "description": _ABOUT + "\n".join(f"- `{each.type}` ({each.status}): {each.when}" for each in PROBLEMS),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix or "/"} for prefix in prefixes],
        "paths": paths,
        "components": {"schemas": types.components, "responses": types.refusals},
    }


class _Schemas:
    """The schema of every type that operations use, and of problems.

    Attributes:
        components: Those that have a name.
        refusals: The answers that are problems, by a name made of theirs.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        contents = [content for each in operations if each.body for content in each.body[1].content.values()]
        found: list[object] = [content.schema for content in contents if not isinstance(content.schema, dict)]
        found += [each.answer for each in operations if JSON in each.offers]
        types = [*dict.fromkeys(found), ProblemDetails]
        schemas, self.components = json_schemas(types)
        self._of_type = dict(zip(types, schemas, strict=True))
        self.refusals: Json = {}
        self._problem = schemas[-1]

    def of(self, wanted: object) -> object:
        """Return a schema, or that of a type."""
        return wanted if isinstance(wanted, dict) else self._of_type[wanted]

    def of_answer(self, each: Operation, media_type: str) -> object:
        """Return the schema of an answer in a media type."""
        if JSON in each.offers and media_type != TLOG_PROOF:
            return self.of(each.answer)
        return {"type": "string", "description": _TEXTS[media_type], **_meta(each.answer)}

    def refusal(self, problems: Sequence[Problem]) -> Json:
        """Return a reference to the answer that is one of some problems of one status."""
        name = "-or-".join(problem.name for problem in problems)
        narrowed = {"properties": {"type": {"enum": [problem.type for problem in problems]}}}
        self.refusals[name] = {
            "description": " ".join(f"`{problem.type}`: {problem.when}" for problem in problems),
            "content": {
                PROBLEM_JSON: {"schema": {"allOf": [self._problem, narrowed]}},
                PROBLEM_CBOR: {"schema": {"description": "The same in CBOR (RFC 9290)."}},
            },
        }
        return {"$ref": f"#/components/responses/{name}"}


def _meta(answer: object) -> Json:
    """Return what an annotated type says of a text."""
    found = get_args(answer)[1:] if get_origin(answer) is Annotated else ()
    meta = next((each for each in found if isinstance(each, Meta)), Meta())
    said = {"description": meta.description, "pattern": meta.pattern}
    return {name: value for name, value in said.items() if value is not None}


def _operation(each: Operation, types: _Schemas) -> Json:
    summary, _, description = (each.handler.__doc__ or "").partition("\n\n")
    said: Json = {"operationId": each.handler.__name__, "summary": " ".join(summary.split()).rstrip(".")}
    if description.strip():
        said["description"] = " ".join(description.split())
    if each.parameters:
        said["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.description,
                "schema": parameter.schema,
            }
            for parameter in each.parameters.values()
        ]
    if each.body:
        content = {name: {"schema": types.of(one.schema)} for name, one in each.body[1].content.items()}
        said["requestBody"] = {"required": True, "content": content}
    said["responses"] = {**_answers(each, types), **_refusals(each.problems, types)}
    return said


def _answers(each: Operation, types: _Schemas) -> Json:
    content = {name: {"schema": types.of_answer(each, name)} for name in each.offers}
    headers = {name: {"schema": {"type": "string", "const": value}} for name, value in each.headers.items()}
    meanings = {"201": "Appended.", "200": "The log had it already."} if each.is_submission else {"200": "The answer."}
    return {
        status: {"description": meaning, "headers": headers, "content": content} for status, meaning in meanings.items()
    }


def _refusals(problems: Sequence[Problem], types: _Schemas) -> Json:
    """Return the answers that are problems, by status."""
    ordered = [problem for problem in PROBLEMS if problem in problems]
    statuses = sorted({problem.status for problem in ordered})
    return {str(status): types.refusal([each for each in ordered if each.status == status]) for status in statuses}


def format_document(document: Mapping[str, object]) -> str:
    """Write a description as it is committed."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str]) -> str | None:
    """Write the committed description, or compare it; return what is wrong."""
    text = format_document(describe())
    match arguments:
        case ["--write"]:
            PATH.write_text(text, encoding="utf-8")
            return None
        case ["--check"]:
            is_same = PATH.exists() and PATH.read_text(encoding="utf-8") == text
            return None if is_same else f"{PATH} is not what the operations say; write it anew with --write"
        case _:
            return "usage: python -m tlog.server.api.openapi --write | --check"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
