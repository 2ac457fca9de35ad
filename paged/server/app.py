"""The routes."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware import Middleware
from fastapi.responses import PlainTextResponse

import paged
from paged.server import errors, responses
from paged.server.answering import respond
from paged.server.chat import ChatAnswer
from paged.server.completions import CompletionAnswer
from paged.server.middleware import LimitBody, RequireKey
from paged.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ProfileRequest,
    TokenizeRequest,
)
from paged.server.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": responses.ErrorBody} for status in (400, 401, 404, 413, 429, 500, 503)
}


def create_app(
    service: Service, *, api_keys: Sequence[str] = (), max_body_bytes: int, debug: bool
) -> FastAPI:
    """The ASGI application.

    Args:
        api_keys: any of them opens; none means open to all.
        debug: serve /debug as well.
    """
    middleware = [Middleware(LimitBody, max_bytes=max_body_bytes)]
    if api_keys:
        middleware.append(Middleware(RequireKey, keys=list(api_keys)))
    app = FastAPI(
        title="paged",
        version=paged.__version__,
        description="An OpenAI-compatible server over the paged engine.",
        middleware=middleware,
        responses=ERRORS,
    )
    errors.install(app)
    add_openai_routes(app, service)
    add_token_routes(app, service)
    add_service_routes(app, service)
    if debug:
        add_debug_routes(app, service)
    return app


def add_openai_routes(app: FastAPI, service: Service) -> None:
    answers = {**ERRORS, 200: {"content": {"text/event-stream": {}}}}  # JSON, or a stream

    @app.post("/v1/completions", response_model=responses.Completion, responses=answers)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await respond(service, body, request, CompletionAnswer)

    @app.post(
        "/v1/chat/completions",
        response_model=responses.ChatCompletion,
        responses=answers,
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await respond(service, body, request, ChatAnswer)

    def model(name: str) -> responses.Model:
        return responses.Model(
            id=name, created=service.started, max_model_len=service.reader.max_model_len
        )

    @app.get("/v1/models")
    async def models() -> responses.ModelList:
        return responses.ModelList(data=[model(name) for name in service.names])

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> responses.Model:
        service.check_model(name)
        return model(name)


def add_token_routes(app: FastAPI, service: Service) -> None:
    reader = service.reader

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> responses.Tokens:
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise errors.ApiError("give either prompt or messages", param="prompt")

        def work() -> responses.Tokens:
            if body.messages is not None:
                ids = reader.conversation(
                    body.messages, add_generation_prompt=body.add_generation_prompt is not False
                )
            else:
                special = body.add_special_tokens is not False
                ids = reader.text(body.prompt or "", add_special_tokens=special)
            shown = [service.token_text.text_of(token) for token in ids]
            return responses.Tokens(
                count=len(ids),
                max_model_len=reader.max_model_len,
                tokens=ids,
                token_strs=shown if body.return_token_strs else None,
            )

        return await service.in_thread(work)

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> responses.TokenizerInfo:
        hf = reader.need_tokenizer().hf
        return responses.TokenizerInfo(
            tokenizer_class=type(hf).__name__,
            bos_token=hf.bos_token,
            eos_token=hf.eos_token,
            pad_token=hf.pad_token,
            unk_token=hf.unk_token,
            chat_template=reader.chat_template,
        )

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> responses.Text:
        service.check_model(body.model)
        ids = reader.ids(body.tokens, "tokens") if body.tokens else []
        skip = bool(body.skip_special_tokens)
        text = await service.in_thread(reader.need_tokenizer().decode, ids, skip)
        return responses.Text(prompt=text)


def add_service_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_class=Response)
    async def health() -> Response:
        service.client.check_room(0)
        return Response(status_code=200)

    @app.get("/version")
    async def version() -> responses.Version:
        return responses.Version(version=paged.__version__)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(
            service.client.metrics.exposition(),
            media_type="text/plain; version=1.0.0; charset=utf-8",
        )


def add_debug_routes(app: FastAPI, service: Service) -> None:
    @app.get("/debug/state")
    async def state() -> dict[str, Any]:
        return await service.client.call("state")

    @app.post("/debug/reset_prefix_cache")
    async def reset_prefix_cache() -> dict[str, Any]:
        return await service.client.call("reset_prefix_cache")

    @app.post("/debug/profile")
    async def profile(body: ProfileRequest | None = None) -> dict[str, Any]:
        num_steps = (body or ProfileRequest()).num_steps
        return await service.client.call("profile", num_steps=num_steps)
