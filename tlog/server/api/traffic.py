"""What the process counts of connections and requests: plain numbers, cheap to add to, owned by the event loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from aiohttp import web

from tlog.server.metrics import SECONDS, Distribution

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
"""The methods that are counted by name; a client may invent others."""

OTHER = "other"
"""The route and the method of a request that has none of ours."""


@dataclass(slots=True)
class Traffic:
    """What came in, and how it was answered.

    Attributes:
        connections: How many are open.
        subscribers: How many of them follow a stream of checkpoints.
        refused: Connections beyond the limit.
        late: Connections that missed a deadline, by its name: head, body or write.
        unparsed: Requests that broke HTTP before they had a route.
        problems: Errors by the last part of their problem type.
        requests: Answers by route template, method and first digit of the status.
        seconds: How long handlers took, by route template and method, but for streams.
    """

    connections: int = 0
    subscribers: int = 0
    refused: int = 0
    late: Counter[str] = field(default_factory=lambda: Counter(head=0, body=0, write=0))
    unparsed: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    seconds: dict[tuple[str, str], Distribution] = field(default_factory=dict)

    def answered(self, request: web.Request, response: web.StreamResponse, seconds: float) -> None:
        """Count the answer to a request."""
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else OTHER
        method = request.method if request.method in METHODS else OTHER
        self.count(route, method, response, seconds)

    def count(self, route: str, method: str, response: web.StreamResponse, seconds: float) -> None:
        """Count an answer by the template of its route and a method that is counted by name."""
        if isinstance(response, web.Response):
            self.add(route, method, response.status, seconds)
        else:
            self.requests[route, method, response.status // 100] += 1
        if PROBLEM in response:
            self.problems[response[PROBLEM]] += 1

    def add(self, route: str, method: str, status: int, *seconds: float) -> None:
        """Count answers that are no streams and no problems: what each of them took."""
        self.requests[route, method, status // 100] += len(seconds)
        times = self.seconds.get((route, method))
        if times is None:
            times = self.seconds[route, method] = Distribution(SECONDS)
        times.add(*seconds)


TRAFFIC = web.AppKey("TRAFFIC", Traffic)
"""The counts of the process."""

PROBLEM = web.ResponseKey("PROBLEM", str)
"""The last part of the type of a problem document."""


@web.middleware
async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count every answer; the outermost middleware, inside which every error has become one."""
    began = perf_counter()
    response = await handler(request)
    request.app[TRAFFIC].answered(request, response, perf_counter() - began)
    return response
