"""Errors on the wire: application/problem+json (RFC 9457), with one table from exception to status.

    type                                 status  when
    urn:treehead:problem:bad-request     400     a header, a path or a body breaks its format
    urn:treehead:problem:not-found       404     no such route, or not visible in any signed tree
    urn:treehead:problem:method          405     the route has other methods
    urn:treehead:problem:not-acceptable  406     no answer of the media types in Accept
    urn:treehead:problem:too-large       413     an entry of more than 65,535 bytes
    urn:treehead:problem:encoding        415     a body with a Content-Encoding
    urn:treehead:problem:damaged         500     what is stored does not verify, so it is not served
    urn:treehead:problem:internal        500     a defect; the log has the details
    urn:treehead:problem:busy            503     too much is waiting; try again after Retry-After
    urn:treehead:problem:stopping        503     the log is closing, or not ready

No error may be cached, and none says anything about the inside.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from tlog.errors import FormatError, NotFoundError, PushbackError, TreeheadError
from tlog.server.errors import DamageError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()

_PREFIX = "urn:treehead:problem:"

_TABLE: tuple[tuple[type[TreeheadError], int, str, str], ...] = (
    (FormatError, 400, "bad-request", "The request breaks its format"),
    (NotFoundError, 404, "not-found", "Not in any signed tree"),
    (PushbackError, 503, "busy", "The log is busy"),
    (StoppedError, 503, "stopping", "The log is stopping"),
    (DamageError, 500, "damaged", "What is stored does not verify"),
    (TreeheadError, 500, "internal", "The server has a defect"),
)

_BY_STATUS = {
    404: ("not-found", "No such resource"),
    405: ("method", "Method not allowed"),
    406: ("not-acceptable", "No such representation"),
    413: ("too-large", "The body is too large"),
    415: ("encoding", "Content-Encoding is not allowed"),
    417: ("bad-request", "The expectation cannot be met"),
}

_KEPT_HEADERS = ("Allow",)


def problem(status: int, name: str, title: str, detail: str | None = None) -> web.Response:
    """Return a problem document."""
    body = {"type": _PREFIX + name, "title": title, "status": status}
    if detail is not None:
        body["detail"] = detail
    return web.Response(
        status=status,
        body=json.dumps(body).encode(),
        content_type="application/problem+json",
        headers={"Cache-Control": "no-store", "Access-Control-Allow-Origin": "*"},
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document."""
    try:
        return await handler(request)
    except TreeheadError as error:
        return _of_error(error)
    except web.HTTPException as error:
        return _of_http(error)
    except ConnectionResetError:
        return problem(400, "bad-request", "The body was cut off")  # the client is gone: nobody reads this
    except Exception as error:
        log.exception("request.failed", method=request.method, error=type(error).__name__)
        return problem(500, "internal", "The server has a defect")


async def never_cache_errors(_: web.Request, response: web.StreamResponse) -> None:
    """Mark every error, also one that aiohttp answers before a handler is called."""
    if response.status >= 400:
        response.headers["Cache-Control"] = "no-store"


def _of_error(error: TreeheadError) -> web.Response:
    _, status, name, title = next(row for row in _TABLE if isinstance(error, row[0]))
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("answer.refused", reason=str(error), error=type(error).__name__)
    response = problem(status, name, title, str(error))
    if isinstance(error, PushbackError) and error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _of_http(error: web.HTTPException) -> web.Response:
    name, title = _BY_STATUS.get(error.status, ("bad-request", "The request breaks its format"))
    response = problem(error.status, name, title)
    for header in _KEPT_HEADERS:
        if header in error.headers:
            response.headers[header] = error.headers[header]
    return response
