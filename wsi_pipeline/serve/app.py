"""The application: routes, what becomes of errors, and the guard around all of it."""

from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.core.recipe import tool_version
from wsi_pipeline.serve import page_routes, slide_routes, work_routes
from wsi_pipeline.serve.access import Guard
from wsi_pipeline.serve.faults import Refusal, settle_fault
from wsi_pipeline.serve.schemas import JsonAnswer
from wsi_pipeline.serve.services import Services

DESCRIPTION = (
    "Slides with their probability maps, and the model that made them. For research, not for diagnosis. "
    "Every request shows the token that was printed at the start: `Authorization: Bearer …`."
)
MAX_NAMED_FIELDS = 5


def build_app(services: Services) -> ASGIApp:
    """The whole application around its services."""
    app = FastAPIOffline(
        title="wsi serve",
        version=tool_version(),
        description=DESCRIPTION,
        docs_url=None,  # a page of our own shows them, under the same content policy as the rest
        redoc_url=None,
        static_url=page_routes.DOCS_FILES,
        default_response_class=JsonAnswer,
    )
    app.state.services = services
    api = APIRouter(prefix="/api/v1", dependencies=[Depends(HTTPBearer(auto_error=False, description="The token printed at the start."))])
    api.include_router(slide_routes.router)
    api.include_router(work_routes.router)
    app.include_router(api)
    app.include_router(page_routes.router)
    _answer_faults(app)
    inner: ASGIApp = app
    if services.settings.cors_origins:
        inner = CORSMiddleware(
            app, allow_origins=services.settings.cors_origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=["Authorization"]
        )
    return Guard(inner, services.settings, services.door, services.metrics)


def _answer_faults(app: FastAPI) -> None:
    async def tell(_request: Request, error: Exception) -> JsonAnswer:
        reply = settle_fault(error)
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        return JsonAnswer(reply.to_json(), reply.status, headers | reply.headers)

    async def tell_invalid(_request: Request, error: Exception) -> JsonAnswer:
        assert isinstance(error, RequestValidationError)
        named = "; ".join(f"{_name_field(fault)}: {fault['msg']}" for fault in error.errors()[:MAX_NAMED_FIELDS])
        reply = settle_fault(Refusal(422, f"the request is not as it should be: {named}"))
        return JsonAnswer(reply.to_json(), reply.status)

    for kind in (HTTPException, WsiError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, tell)
    app.add_exception_handler(RequestValidationError, tell_invalid)


def _name_field(fault: Any) -> str:
    return ".".join(str(part) for part in fault["loc"])
