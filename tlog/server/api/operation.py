"""Operations: each route of the API is declared once, by its handler and the types of its parameters and its answer.

    @operation("GET", "/v1/entries/{index}", offers=(JSON, CBOR, TLOG_PROOF), problems=(NOT_FOUND, DAMAGED))
    async def get_entry(request: web.Request, index: Index) -> Entry:

From the declaration come the route, what is parsed before the handler is called, how its answer is encoded, and the
description of the API (`tlog.server.api.openapi`). A parameter is typed `Annotated[T, Parameter(…)]`, a body
`Annotated[T, Body(…)]`; an argument without either is refused on import, so none can miss in the description.

A request is refused for the first of these that is wrong: Accept, parameters, admission, Content-Encoding,
Content-Type, Content-Length; only then is the body read, and a client that expects `100-continue` told so.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from aiohttp import HttpVersion11, hdrs, web

from tlog.errors import FormatError
from tlog.server.api.answer import encode
from tlog.server.api.bodies import BODIES
from tlog.server.api.keys import LOG
from tlog.server.api.media import EncodingError, MediaTypeError, negotiate
from tlog.server.api.problems import (
    BAD_REQUEST,
    BUSY,
    EXPECTATION,
    INTERNAL,
    TIMEOUT,
    Problem,
    accepted,
    answer_problem,
)
from tlog.server.api.rate import charge
from tlog.server.errors import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tlog.server.api.bodies import Hold
    from tlog.server.limit import Limits

T = TypeVar("T")

Handler: TypeAlias = Callable[..., Awaitable[object]]

FRESH = "no-store"
"""Cache-Control of what is true of this moment alone."""

IMMUTABLE = "public, max-age=31536000, immutable"
"""Cache-Control of what never changes: a year, the longest that caches honour."""

ALLOWED_HEADERS = "Accept, Content-Type, Idempotency-Key, Treehead-Have"
"""Request headers that a script of another origin may send; all that the API reads."""

EXPOSED_HEADERS = "Retry-After, RateLimit, RateLimit-Policy"
"""Response headers that a script of another origin may read."""

OPEN: dict[str, str] = {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*", hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: EXPOSED_HEADERS}
"""What lets scripts of other origins read an answer."""

PREFLIGHT_S = 86_400
"""Seconds that a browser keeps the answer to a preflight; none keeps it longer."""

EVERY_PROBLEM = (BAD_REQUEST, TIMEOUT, EXPECTATION, INTERNAL, BUSY)
"""What any operation may answer: to whatever a client can send, for a defect, and beyond the limit of connections."""


@dataclass(frozen=True, slots=True)
class Submitted(Generic[T]):
    """The answer to a submission: 201 where it appended something, 200 where the log had everything already.

    Attributes:
        value: The answer.
        is_new: Whether it appended something.
    """

    value: T
    is_new: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something that is read from the path or a header.

    Attributes:
        place: "path" or "header".
        name: Its name there.
        description: A sentence.
        schema: Its JSON Schema.
        parse: Returns its value from its text, or raises FormatError.
    """

    place: str
    name: str
    description: str
    schema: Mapping[str, object]
    parse: Callable[[str], object]

    def read(self, request: web.Request) -> object:
        """Return its value in a request; None for a header that is absent.

        Raises:
            FormatError: It breaks its format, or is there more than once.
        """
        in_path = self.place == "path"
        values = [request.match_info[self.name]] if in_path else request.headers.getall(self.name, [])
        if not values:
            return None
        if len(values) > 1:
            raise FormatError(f"{self.name} is sent more than once")
        try:
            return self.parse(values[0])
        except FormatError as error:
            raise FormatError(f"{self.name}: not {self.description[:1].lower()}{self.description[1:]}") from error


@dataclass(frozen=True, slots=True)
class Content:
    """One media type of a body.

    Attributes:
        schema: Its JSON Schema, or a type that has one.
        parse: Returns its value from its bytes and the limits of the log, or raises.
    """

    schema: object
    parse: Callable[[bytes, Limits], object]


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request.

    Attributes:
        what: What it is, with an article; it begins the messages.
        content: By media type.
        limit: Returns its largest size in bytes from the limits of the log.
        is_opaque: Whether any media type is taken, and none is looked at.
        is_submission: Whether the log is asked, before it is read, if it takes entries, and one is charged for.
    """

    what: str
    content: Mapping[str, Content]
    limit: Callable[[Limits], int]
    is_opaque: bool = False
    is_submission: bool = False

    async def read(self, request: web.Request, hold: Hold, key: object) -> object:
        """Read and parse it.

        Args:
            request: The request.
            hold: Counts its bytes.
            key: The Idempotency-Key of a submission, if it has one.

        Raises:
            EncodingError: It has a Content-Encoding.
            MediaTypeError: It is of another media type.
            TooLargeError: It is beyond its limit.
            FormatError: It breaks its format.
        """
        log = request.app[LOG]
        if self.is_submission:
            log.check_admission(key if isinstance(key, str) else None)
            charge(request, 1)
        content = self._content(request)
        data = await read_body(request, self.limit(log.limits), self.what, hold)
        return content.parse(data, log.limits)

    def _content(self, request: web.Request) -> Content:
        codings = request.headers.getall(hdrs.CONTENT_ENCODING, [])
        if any(coding.lower() != "identity" for coding in codings):
            raise EncodingError(f"{self.what} is sent without Content-Encoding: what is received is what is hashed")
        if self.is_opaque:
            return next(iter(self.content.values()))
        media_type = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip(" \t").lower()
        if media_type not in self.content:
            raise MediaTypeError(f"{self.what} is sent with Content-Type {' or '.join(self.content)}")
        return self.content[media_type]


async def read_body(request: web.Request, limit: int, what: str, hold: Hold) -> bytes:
    """Return the body of a request as it was sent.

    Args:
        request: The request.
        limit: Most bytes that are read.
        what: What it is, with an article.
        hold: Counts its bytes.

    Raises:
        TooLargeError: It is larger.
        PushbackError: Those of all requests take too much.
    """
    length = request.content_length
    if length is not None and length > limit:
        raise TooLargeError(f"{what} has at most {limit:,} bytes, not {length:,}")
    if _is_expecting(request):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no byte of the answer is sent yet
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise TooLargeError(f"{what} has at most {limit:,} bytes")
        hold.grow(len(chunk))
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _is_expecting(request: web.Request) -> bool:
    return hdrs.EXPECT in request.headers and request.version >= HttpVersion11


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Refuse expectations that nobody can meet; 100-continue is met when the body is about to be read."""
    if _is_expecting(request) and request.headers[hdrs.EXPECT].lower() != "100-continue":
        return answer_problem(EXPECTATION, accept=accepted(request))
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one route.

    Attributes:
        method: GET or POST; GET answers HEAD too.
        path: Path with parameters in braces, below the prefix of a log.
        pattern: The same as aiohttp matches it, where a parameter may hold slashes.
        handler: What answers it.
        parameters: Parameters by the name of the argument that takes them.
        body: Argument and body, if it has one.
        answer: Type of the answer; of a submission, without Submitted.
        is_submission: Whether the answer is 201 or 200.
        offers: Media types of the answer, the most wanted first.
        headers: Headers of each answer, besides those that follow from the rest.
        problems: What it may answer instead, besides EVERY_PROBLEM.
        is_public: Whether scripts of other origins may use it.
    """

    method: str
    path: str
    pattern: str
    handler: Handler
    parameters: Mapping[str, Parameter]
    body: tuple[str, Body] | None
    answer: object
    is_submission: bool
    offers: tuple[str, ...]
    headers: Mapping[str, str]
    problems: Sequence[Problem]
    is_public: bool

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        media_type = self.offers[0]
        if len(self.offers) > 1:
            media_type = negotiate(accepted(request), self.offers)
        values = {name: parameter.read(request) for name, parameter in self.parameters.items()}
        if self.body is None:
            answer = await self.handler(request, **values)
        else:
            name, body = self.body
            with request.config_dict[BODIES].hold() as hold:
                values[name] = await body.read(request, hold, values.get("key"))
                answer = await self.handler(request, **values)
        if isinstance(answer, web.StreamResponse):
            return answer
        status = 200
        if isinstance(answer, Submitted):
            status, answer = 201 if answer.is_new else 200, answer.value
        return web.Response(status=status, body=encode(answer, media_type), headers=self.headers_of(media_type))

    def headers_of(self, media_type: str) -> dict[str, str]:
        """Return the headers of an answer in one of the media types, but those that are on all answers."""
        charset = "; charset=utf-8" if media_type.startswith("text/") else ""
        headers = {hdrs.CONTENT_TYPE: media_type + charset, **self.headers}
        if len(self.offers) > 1:
            headers[hdrs.VARY] = hdrs.ACCEPT
        return headers


def operation(  # noqa: PLR0913 — one for each thing that differs between operations
    method: str,
    path: str,
    *,
    pattern: str = "",
    offers: tuple[str, ...],
    problems: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
    cache: str = FRESH,
    is_public: bool = True,
) -> Callable[[Handler], Operation]:
    """Declare the operation that a handler answers; see the module, and Operation.

    Raises:
        TypeError: An argument of the handler is neither a parameter nor a body, or its answer has no type.
    """

    def declare(handler: Handler) -> Operation:
        parameters, body = _arguments(handler)
        answer = get_type_hints(handler, include_extras=True).get("return")
        if answer is None:
            raise TypeError(f"the answer of {handler.__name__} has no type")
        is_submission = get_origin(answer) is Submitted
        return Operation(
            method=method,
            path=path,
            pattern=pattern or path,
            handler=handler,
            parameters=parameters,
            body=body,
            answer=get_args(answer)[0] if is_submission else answer,
            is_submission=is_submission,
            offers=offers,
            headers={hdrs.CACHE_CONTROL: cache, **(headers or {})},
            problems=(*problems, *EVERY_PROBLEM),
            is_public=is_public,
        )

    return declare


def _arguments(handler: Handler) -> tuple[dict[str, Parameter], tuple[str, Body] | None]:
    """Return what the arguments of a handler are read from, all but the first, which is the request."""
    hints = get_type_hints(handler, include_extras=True)
    parameters: dict[str, Parameter] = {}
    body: tuple[str, Body] | None = None
    for name in list(inspect.signature(handler).parameters)[1:]:
        match get_args(hints.get(name))[1:]:
            case (Parameter() as parameter,):
                parameters[name] = parameter
            case (Body() as found,) if body is None:
                body = (name, found)
            case _:
                raise TypeError(f"{name} of {handler.__name__} is neither a parameter nor a body")
    return parameters, body


def routes(operations: Iterable[Operation]) -> list[web.RouteDef]:
    """Return the routes of operations, and for each public path one that answers the preflights of browsers."""
    found = list(operations)
    table = [
        (web.get if each.method == hdrs.METH_GET else web.post)(each.pattern, each.serve, expect_handler=expect)
        for each in found
    ]
    for pattern in dict.fromkeys(each.pattern for each in found if each.is_public):
        methods = [each.method for each in found if each.pattern == pattern]
        table.append(web.options(pattern, _Preflight(methods).serve, expect_handler=expect))
    return table


@dataclass(frozen=True, slots=True)
class _Preflight:
    """What a browser asks before a script of another origin may send a request (Fetch standard, CORS)."""

    methods: Sequence[str]

    async def serve(self, _: web.Request) -> web.Response:
        """Allow what the path takes."""
        methods = [*self.methods, *([hdrs.METH_HEAD] if hdrs.METH_GET in self.methods else []), hdrs.METH_OPTIONS]
        headers = {
            hdrs.ALLOW: ", ".join(methods),
            hdrs.CACHE_CONTROL: FRESH,
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(methods),
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ALLOWED_HEADERS,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
        }
        return web.Response(status=204, headers=headers)


async def finish(request: web.Request, response: web.StreamResponse) -> None:
    """Open an answer to scripts of other origins, and keep every error out of caches; run when one is prepared."""
    if response.status >= 400:
        response.headers[hdrs.CACHE_CONTROL] = FRESH
    owner = getattr(request.match_info.handler, "__self__", None)
    if response.status >= 400 or isinstance(owner, _Preflight) or (isinstance(owner, Operation) and owner.is_public):
        response.headers.update(OPEN)
