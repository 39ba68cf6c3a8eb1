"""Errors on the wire, with one table from exception to status, in JSON (RFC 9457) or CBOR (RFC 9290).

    {"type": "urn:treehead:problem:not-found", "title": "…", "status": 404, "detail": "…"}

    {-1: title, -2: detail, 7807: {0: type, 1: status}}

A client gets CBOR where its Accept wants CBOR more than JSON. `type` and `status` are stable, the sentences are not. No
error may be cached, and none says anything about the inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from aiohttp import hdrs, http_exceptions, web

from tlog.cbor import Value
from tlog.cbor import encode as encode_cbor
from tlog.errors import FormatError, NotFoundError, PushbackError, TreeheadError
from tlog.fetch import PROBLEM_CBOR
from tlog.server.api.answer import ProblemDetails, to_json
from tlog.server.api.media import EncodingError, MediaTypeError, NotAcceptableError, problem_form
from tlog.server.api.traffic import PROBLEM
from tlog.server.errors import (
    DamageError,
    KeyReusedError,
    NoSpaceError,
    RateError,
    ReadOnlyError,
    StoppedError,
    TooLargeError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()

TYPE_PREFIX = "urn:treehead:problem:"


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of error.

    Attributes:
        name: What its type ends in.
        status: Its HTTP status.
        title: A sentence that is the same each time.
        when: When it is answered, for the description of the API.
        errors: The exceptions that mean it.
    """

    name: str
    status: int
    title: str
    when: str
    errors: tuple[type[Exception], ...] = ()

    @property
    def type(self) -> str:
        """Return its URI."""
        return TYPE_PREFIX + self.name


BAD_REQUEST = Problem(
    "bad-request",
    400,
    "The request breaks its format",
    "The request itself, a header, a path or a body breaks its format.",
    (FormatError, web.RequestPayloadError, ConnectionResetError),
)
READ_ONLY = Problem(
    "read-only",
    403,
    "The log takes no entries",
    "The log is served read-only, was ended, or has reached its largest size.",
    (ReadOnlyError,),
)
NOT_FOUND = Problem(
    "not-found",
    404,
    "Not found",
    "There is no such route, or what is asked for is in no signed tree (yet).",
    (NotFoundError,),
)
METHOD = Problem("method", 405, "The route has other methods", "The route has other methods; Allow lists them.")
NOT_ACCEPTABLE = Problem(
    "not-acceptable",
    406,
    "No such representation",
    "Accept has none of the media types that the answer comes in.",
    (NotAcceptableError,),
)
TIMEOUT = Problem(
    "timeout", 408, "The request took too long", "The request did not arrive in the time it has.", (TimeoutError,)
)
TOO_LARGE = Problem(
    "too-large",
    413,
    "The body is too large",
    "An entry, a batch or another body is beyond its limit; the detail names it.",
    (TooLargeError,),
)
ENCODING = Problem(
    "encoding", 415, "Content-Encoding is not allowed", "The body has a Content-Encoding.", (EncodingError,)
)
MEDIA_TYPE = Problem(
    "media-type",
    415,
    "The body is of another media type",
    "Content-Type is none that the operation takes; the detail lists those.",
    (MediaTypeError,),
)
EXPECTATION = Problem(
    "expectation", 417, "The expectation cannot be met", "Expect asks for something other than 100-continue."
)
KEY_REUSED = Problem(
    "key-reused",
    422,
    "The Idempotency-Key was used for another request",
    "The Idempotency-Key came with another request in the last 24 hours.",
    (KeyReusedError,),
)
RATE = Problem(
    "rate",
    429,
    "Too many entries from one address",
    "The address has submitted more than its share; Retry-After says when to go on.",
    (RateError,),
)
DAMAGED = Problem(
    "damaged",
    500,
    "What is stored does not verify",
    "What is stored does not lead to the signed root, so it is not served.",
    (DamageError,),
)
INTERNAL = Problem("internal", 500, "The server has a defect", "The server has a defect; its own log has the details.")
BUSY = Problem(
    "busy",
    503,
    "The log is busy",
    "Too much is waiting, too many are connected, or the clock is wrong; Retry-After says when to come back.",
    (PushbackError,),
)
STOPPING = Problem("stopping", 503, "The log is stopping", "The log is closing, or is not ready.", (StoppedError,))
NO_SPACE = Problem(
    "no-space",
    507,
    "The disk of the log is full",
    "The disk of the log has too little free space; what is there is still served.",
    (NoSpaceError,),
)

PROBLEMS = (
    BAD_REQUEST,
    READ_ONLY,
    NOT_FOUND,
    METHOD,
    NOT_ACCEPTABLE,
    TIMEOUT,
    TOO_LARGE,
    ENCODING,
    MEDIA_TYPE,
    EXPECTATION,
    KEY_REUSED,
    RATE,
    DAMAGED,
    INTERNAL,
    BUSY,
    STOPPING,
    NO_SPACE,
)
"""Every problem there is."""

_OF_STATUS = {problem.status: problem for problem in (BAD_REQUEST, NOT_FOUND, METHOD, TIMEOUT, TOO_LARGE, EXPECTATION)}


def accepted(request: web.Request) -> str:
    """Return the media types that a client accepts: all of its Accept headers."""
    return ",".join(request.headers.getall(hdrs.ACCEPT, []))


def answer_problem(problem: Problem, detail: str | None = None, accept: str = "") -> web.Response:
    """Return a problem as the client's Accept wants it."""
    media_type = problem_form(accept)
    encode = _to_cbor if media_type == PROBLEM_CBOR else _to_json
    response = web.Response(
        status=problem.status,
        body=encode(problem, detail),
        headers={
            hdrs.CONTENT_TYPE: media_type,
            hdrs.CACHE_CONTROL: "no-store",
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
        },
    )
    response[PROBLEM] = problem.name
    return response


def problem_of_parser_error(status: int, error: BaseException | None) -> web.Response:
    """Return the answer to what is no request, or failed outside every handler; it ends the connection.

    Args:
        status: What aiohttp would answer.
        error: What it stumbled over.
    """
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        response = answer_problem(INTERNAL)
    elif isinstance(error, http_exceptions.LineTooLong):
        response = answer_problem(
            BAD_REQUEST, "the request line or a header is too long, or there are too many headers"
        )
    else:
        response = answer_problem(BAD_REQUEST, "this is no HTTP/1.1 request")
    response.force_close()
    return response


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _of_http(request, error)
    except Exception as error:  # noqa: BLE001 — whatever it is, the client gets a problem, and the log the details
        return answer_error(error, request.method, accepted(request))


def answer_error(error: Exception, method: str, accept: str) -> web.Response:
    """Return the problem that an exception means; what has none in the table is a defect.

    Args:
        error: What a handler raised.
        method: The method of the request.
        accept: The media types that the client accepts.
    """
    problem = next((problem for problem in PROBLEMS if isinstance(error, problem.errors)), INTERNAL)
    if problem is INTERNAL:
        log.error("request.failed", method=method, error=type(error).__name__, exc_info=error)
    elif problem is DAMAGED:
        log.error("answer.refused", reason=str(error), error=type(error).__name__)
    detail = str(error) if isinstance(error, TreeheadError) and problem is not INTERNAL else None
    response = answer_problem(problem, detail, accept)
    if problem is TIMEOUT:
        response.force_close()
    if isinstance(error, PushbackError | RateError) and error.retry_after is not None:
        response.headers[hdrs.RETRY_AFTER] = str(error.retry_after)
    return response


def _of_http(request: web.Request, error: web.HTTPException) -> web.Response:
    """Return the problem for what aiohttp refuses by itself."""
    problem = _OF_STATUS.get(error.status, BAD_REQUEST if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else INTERNAL)
    response = answer_problem(problem, accept=accepted(request))
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    return response


def _to_json(problem: Problem, detail: str | None) -> bytes:
    return to_json(ProblemDetails(type=problem.type, title=problem.title, status=problem.status, detail=detail))


def _to_cbor(problem: Problem, detail: str | None) -> bytes:
    value: dict[int | str, Value] = {-1: problem.title, 7807: {0: problem.type, 1: problem.status}}
    if detail is not None:
        value[-2] = detail
    return encode_cbor(value)
