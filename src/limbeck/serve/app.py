"""The public web application: read-only, no authentication, nothing of the server's inside in any answer.

Every path answers GET alone. Every answer carries a Content-Security-Policy that allows no script and no
request to anywhere, the page's own style sheet excepted. Every error is `{"error": {"code", "message"}}`.
"""

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from limbeck import __version__
from limbeck.errors import LimbeckError
from limbeck.pages.html import style_digest
from limbeck.serve.home import home_page
from limbeck.serve.reader import ArenaReader
from limbeck.serve.responses import (
    CommitmentsAnswer,
    ErrorAnswer,
    Health,
    KingAnswer,
    MetagraphAnswer,
    Problem,
    RoundsAnswer,
    ScoresAnswer,
)

log = logging.getLogger(__name__)

MAX_ROUNDS = 500


def create_app(reader: ArenaReader) -> FastAPI:
    """Return the application over `reader`, whose methods are called from several threads."""
    app = FastAPI(
        title="Limbeck arena",
        version=__version__,
        description="Read-only. Divergences are in nats a token; a commitment is named `hotkey:block`.",
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    _add_errors(app)

    @app.middleware("http")
    async def with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update(security_headers())
        if request.url.path.startswith("/api"):
            response.headers["Access-Control-Allow-Origin"] = "*"  # public data, no credentials
        return response

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def home() -> str:
        return home_page(reader)

    api = _api(reader)
    app.include_router(api, prefix="/api/v1", responses={503: {"model": ErrorAnswer}})
    app.include_router(api, prefix="/api", include_in_schema=False)
    return app


def security_headers() -> dict[str, str]:
    """Return the headers of every answer."""
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; style-src '{style_digest()}'; img-src data:; base-uri 'none'; form-action 'none';"
            " frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    }


def _api(reader: ArenaReader) -> APIRouter:
    api = APIRouter()

    @api.get("/health")
    def health() -> Health:
        """Say whether the arena can be read, and where it stands."""
        arena, king = reader.arena(), reader.king()
        return Health(
            status="ok",
            version=__version__,
            arena=arena.name,
            policy=arena.policy,
            teacher=arena.teacher,
            config_version=arena.config_version,
            block=reader.metagraph().block,
            king=king.commitment if king else None,
            open_round=arena.open_round,
            open_round_state=arena.open_round_state,
        )

    @api.get("/metagraph")
    def metagraph() -> MetagraphAnswer:
        """Return the registered hotkeys with stake, permit and share of the weights."""
        graph = reader.metagraph()
        return MetagraphAnswer(
            netuid=graph.netuid,
            block=graph.block,
            block_hash=graph.block_hash,
            n=len(graph.neurons),
            neurons=graph.neurons,
        )

    @api.get("/commitments")
    def commitments() -> CommitmentsAnswer:
        """Return who committed which model, how far it has come, and why it was disqualified."""
        return CommitmentsAnswer(commitments=reader.commitments())

    @api.get("/scores")
    def scores() -> ScoresAnswer:
        """Return each model's newest KL, its difference from the king with a 95 % interval, and the reason."""
        king = reader.king()
        return ScoresAnswer(king=king.commitment if king else None, scores=reader.scores())

    @api.get("/king")
    def king() -> KingAnswer:
        """Return who reigns, since when and by how much, and every reign before."""
        return KingAnswer(king=reader.king(), reigns=reader.reigns())

    @api.get("/rounds")
    def rounds(limit: Annotated[int, Query(ge=1, le=MAX_ROUNDS)] = 50) -> RoundsAnswer:
        """Return the newest rounds with their verdicts."""
        return RoundsAnswer(rounds=reader.rounds(limit))

    return api


def _add_errors(app: FastAPI) -> None:
    """Answer every error with the same JSON body."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        return _problem(status, status.name.lower(), f"{status.phrase}.", dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_parameter", f"{place}: {first['msg'].lower()}.")

    @app.exception_handler(LimbeckError)
    async def unreadable(request: Request, error: LimbeckError) -> JSONResponse:
        log.error("%s: %s", request.url.path, error)
        message = "The arena cannot be read right now. Try again later."
        return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", message, {"Retry-After": "30"})

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "Something went wrong.")


def _problem(status: HTTPStatus, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = ErrorAnswer(error=Problem(code=code, message=message))
    return JSONResponse(body.model_dump(), status, {**security_headers(), **(headers or {})})
