"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import difflib
import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from paged.arguments import did_you_mean

INVALID_REQUEST = "invalid_request_error"
KINDS = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """What a client is told.

    Args:
        message: for the reader.
        status: of the HTTP response.
        param: the request's field at fault.
        code: for programs.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        kind = KINDS.get(self.status, INVALID_REQUEST)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode(errors="replace")

    def response(self) -> Response:
        return Response(
            self.body(),
            status_code=self.status,
            headers=self.headers,
            media_type="application/json",
        )


class ClientGone(Exception):
    """The client has closed its connection: there is nobody to answer."""


def not_supported(param: str, reason: str) -> ApiError:
    return ApiError(f"{param}: {reason}", param=param, code="unsupported_parameter")


def install(app: FastAPI) -> None:
    """Have the application answer every error in this shape."""

    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def client_gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        body = request.scope["endpoint"].__annotations__.get("body")
        return from_validation(error, getattr(body, "model_fields", ())).response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        hint = "; see /docs" if error.status_code in (404, 405) else ""
        return ApiError(
            f"{request.method} {request.url.path}: {error.detail}{hint}",
            status=error.status_code,
            headers=error.headers,
        ).response()

    async def bug(_: Request, error: Exception) -> Response:
        message = f"internal error: {type(error).__name__}: {error}"
        return ApiError(message, status=500).response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(ClientGone, client_gone)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, bug)


def from_validation(error: RequestValidationError, fields: Iterable[str]) -> ApiError:
    """All that pydantic found wrong, as one error; `param` is the first field at fault.

    `fields` are those that the body may have.
    """
    rules: dict[str, dict[str, str]] = {}  # by place: what it should be, and what it is instead
    param = code = None
    for problem in error.errors():
        kind, where = problem["type"], problem["loc"][1:]  # behind "body"
        if kind == "json_invalid":
            return ApiError(f"the body is not JSON: {problem['ctx']['error']}", code="invalid_json")
        if not where:
            return ApiError(
                "the body must be a JSON object, sent with Content-Type: application/json, got "
                f"{reprlib.repr(error.body)}"
            )
        path = _path(error.body, where)
        name, rule, got = path.partition(".")[0], problem["msg"], reprlib.repr(problem["input"])
        if kind == "missing":
            path, got = f"{path}.{where[-1]}".lstrip("."), ""
            name = path.partition(".")[0]
        elif kind == "extra_forbidden":
            near = difflib.get_close_matches(path, fields, n=1)
            rule = "unknown parameter" + (f"; did you mean {near[0]}?" if near else "")
            name, code, got = path, "unknown_parameter", ""
        param = param or name
        rules.setdefault(path, {})[rule] = got and f", got {got}"
    text = "; ".join(
        f"{path}: {' or '.join(found)}{next(iter(found.values()))}" for path, found in rules.items()
    )
    return ApiError(text, param=param, code=code)


def _path(body: Any, where: Sequence[int | str]) -> str:
    """The place of a problem by keys of the body; pydantic has branches of unions among them."""
    names = []
    for part in where:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            continue
        names.append(str(part))
    return ".".join(names)


def unknown_model(name: str, served: tuple[str, ...]) -> ApiError:
    return ApiError(
        f"the model {name!r} does not exist here{did_you_mean(name, served)}",
        status=404,
        param="model",
        code="model_not_found",
    )
