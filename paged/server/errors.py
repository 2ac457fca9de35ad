"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import json
from collections.abc import Mapping

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
        return from_validation(error).response()

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return ApiError(
            str(error.detail), status=error.status_code, headers=error.headers
        ).response()

    async def bug(_: Request, error: Exception) -> Response:
        message = f"internal error: {type(error).__name__}: {error}"
        return ApiError(message, status=500).response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(ClientGone, client_gone)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, bug)


def from_validation(error: RequestValidationError) -> ApiError:
    """All that pydantic found wrong, as one error; `param` is the first field at fault."""
    messages: dict[str, list[str]] = {}
    code = None
    for problem in error.errors():
        where = [part for part in problem["loc"] if part not in ("body", "path", "query")]
        if problem["type"] == "json_invalid":
            return ApiError(f"the body is not JSON: {problem['ctx']['error']}", code="invalid_json")
        name = str(where[0]) if where else "body"
        if problem["type"] == "extra_forbidden":
            name = ".".join(str(part) for part in where)
            code = code or "unknown_parameter"
            messages[name] = ["unknown parameter"]
        else:
            messages.setdefault(name, [])
            if problem["msg"] not in messages[name]:
                messages[name].append(problem["msg"])
    text = "; ".join(f"{name}: {' or '.join(found)}" for name, found in messages.items())
    return ApiError(text, param=next(iter(messages), None), code=code)


def unknown_model(name: str, served: tuple[str, ...]) -> ApiError:
    return ApiError(
        f"the model {name!r} does not exist here{did_you_mean(name, served)}",
        status=404,
        param="model",
        code="model_not_found",
    )
