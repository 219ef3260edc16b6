"""The server's ASGI application: routes, what stands before them, and what is refused."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import CoromError
from .server_call import Call
from .server_errors import Refusal, refusal_of
from .server_gate import Key, Record, refuse
from .server_log import logger
from .server_metrics import OTHER, Metrics
from .server_patience import ClientGone
from .server_routes import Endpoint, Routes
from .server_service import Service

if TYPE_CHECKING:
    from .server_tracing import Tracing  # needs packages that only --otlp-endpoint needs

Handler = Callable[[Request, Exception], Awaitable[Response]]


def build_app(service: Service, metrics: Metrics, tracing: "Tracing | None" = None) -> Any:  # noqa: ANN401
    """Return the ASGI application."""
    settings = service.settings
    table = Routes(service, metrics).table()

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, CoromError)
        error.__traceback__ = None  # its frames may hold the future that it came by, which holds it
        refusal = refusal_of(error, service.retry_after_s())
        if refusal.kind == "Backend":
            call: Call = request.scope["corom.call"]
            logger.error("request %s: %s", call.id, error)
            service.note_failure(error)
        return _Refused(refusal)

    handlers: dict[Any, Handler] = {
        Refusal: _refused,
        HTTPException: _no_route,
        CoromError: failed,
        ClientGone: _gone,
        Exception: _broken,
    }
    router = Starlette(routes=table, exception_handlers=handlers)
    router.router.redirect_slashes = False
    posted = {route.path: route.endpoint for route in table if "POST" in (route.methods or ())}
    app: Any = Direct(router, posted, handlers)
    if settings.api_keys:
        app = Key(app, settings.api_keys)
    if settings.cors_allow_origin:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_allow_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    paths = {route.path for route in table}

    def observe(call: Call) -> None:
        route = call.path if call.path in paths else route_of(call.path, table)
        metrics.observe(call, route)
        service.end(call)  # if no answer was sent
        service.cut_off += call.cut_off
        if tracing is not None:
            tracing.observe(call, route)

    return Record(app, service.end, observe)


def route_of(path: str, table: Iterable[Route]) -> str:
    """Return the route that a path belongs to, its parameters by their names, or "other"."""
    return next((r.path_format for r in table if r.path_regex.match(path)), OTHER)


class Direct:
    """Answers what is posted without Starlette's router, which takes a tenth of HTTP's time."""

    def __init__(
        self,
        router: Any,  # noqa: ANN401
        posted: dict[str, Endpoint],
        handlers: dict[Any, Handler],
    ) -> None:
        self._router, self._posted, self._handlers = router, posted, handlers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        """Answer a request, or pass it on."""
        endpoint = self._posted.get(scope["path"]) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._router(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except Exception as error:
            kind = next(kind for kind in type(error).__mro__ if kind in self._handlers)
            response = await self._handlers[kind](request, error)
            if kind is Exception:
                await response(scope, receive, send)
                raise  # it is told in the log
        await response(scope, receive, send)


class _Refused(Response):
    """A refusal as a response, which may have to throw away what the client still sends."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        # Its frames hold this response, and the request: a cycle, which only the collector ends.
        self._refusal = refusal.with_traceback(None)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        await refuse(self._refusal, scope, receive, send)


class _Nothing(Response):
    """What is sent to nobody."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401, ARG002
        scope["corom.call"].status = 499
        scope["corom.call"].failure = "ClientGone"


async def _refused(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return _Refused(refusal)


async def _broken(request: Request, _error: Exception) -> Response:
    call: Call = request.scope["corom.call"]
    return _Refused(Refusal(500, "Internal", f"internal error; request id {call.id}."))


async def _gone(_request: Request, _error: Exception) -> Response:
    return _Nothing()


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path: str = request.scope["path"]
    if error.status_code == 405:
        routes = [r for r in request.app.routes if r.path_regex.match(path)]
        allowed = ", ".join(sorted({method for route in routes for method in route.methods}))
        why = f"{request.method} is not allowed on {path}. Allowed: {allowed}."
        headers = {"allow": allowed}
        return _Refused(
            Refusal(405, "Validation", why, code="method_not_allowed", headers=headers, close=True)
        )
    why = f"there is no route {path}."
    return _Refused(Refusal(404, "NotFound", why, code="not_found", close=True))
