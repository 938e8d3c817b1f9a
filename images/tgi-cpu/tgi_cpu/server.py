"""The HTTP application: its routes, and which of them require the API key."""

import hmac
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tgi_cpu import STAND_IN_LABEL, TGI_VERSION
from tgi_cpu.args import Args, Limits
from tgi_cpu.chat_template import ChatTemplate
from tgi_cpu.contract import BodyError, InferError
from tgi_cpu.inference import Inference
from tgi_cpu.routes_native import NativeRoutes
from tgi_cpu.routes_openai import OpenAIRoutes


class BearerAuth:
    """401 without a body unless the Authorization header has the key; like TGI, compares case-insensitively."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = f"bearer {api_key}".lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, or refuse it before reading its body."""
        given = Request(scope).headers.get("authorization", "").lower().encode()
        if hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
        else:
            await Response(status_code=401)(scope, receive, send)


def build_app(args: Args, limits: Limits, inference: Inference, template: ChatTemplate) -> Starlette:
    """Connect the routes to a loaded model."""
    native = NativeRoutes(inference, _info(args, limits), args.payload_limit)
    openai = OpenAIRoutes(
        inference,
        template,
        model_id=args.model_id,
        fingerprint=f"{TGI_VERSION}-{STAND_IN_LABEL}",
        payload_limit=args.payload_limit,
        max_client_batch_size=args.max_client_batch_size,
    )
    guard = [Middleware(BearerAuth, api_key=args.api_key)] if args.api_key is not None else []
    guarded = {
        "/": native.compat_generate,
        "/generate": native.generate,
        "/generate_stream": native.generate_stream,
        "/tokenize": native.tokenize,
        "/v1/chat/completions": openai.chat,
        "/v1/completions": openai.completions,
    }
    open_to_all = {
        "/": native.health,
        "/health": native.health,
        "/ping": native.health,
        "/info": native.show_info,
        "/metrics": native.metrics,
        "/v1/models": openai.models,
    }
    return Starlette(
        routes=[
            *(Route(path, endpoint, methods=["POST"], middleware=guard) for path, endpoint in guarded.items()),
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in open_to_all.items()),
            Route("/chat_tokenize", openai.chat_tokenize, methods=["POST"]),
        ],
        exception_handlers={InferError: _infer_error, BodyError: _rejection, HTTPException: _no_body},
    )


def _info(args: Args, limits: Limits) -> dict[str, Any]:
    """``model_id`` is the mounted path, so that a digest in the path proves which artifact is served."""
    return {
        "model_id": args.model_id,
        "model_sha": None,
        "model_pipeline_tag": None,
        "max_concurrent_requests": args.max_concurrent_requests,
        "max_best_of": args.max_best_of,
        "max_stop_sequences": args.max_stop_sequences,
        "max_input_tokens": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "validation_workers": args.validation_workers,
        "max_client_batch_size": args.max_client_batch_size,
        "router": "text-generation-router",
        "version": TGI_VERSION,
        "sha": None,
        "docker_label": STAND_IN_LABEL,
    }


async def _infer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InferError)  # noqa: S101 - Starlette's signature is wider than what it passes
    return JSONResponse(error.body, error.status)


async def _rejection(request: Request, error: Exception) -> Response:
    assert isinstance(error, BodyError)  # noqa: S101 - as above
    return PlainTextResponse(str(error), error.status)


async def _no_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    return Response(status_code=error.status_code, headers=error.headers)
