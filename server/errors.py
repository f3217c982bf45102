"""Our exceptions and OpenAI's error envelope: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from engines.types import ErrorCode, RequestError


class APIError(Exception):
    """An error that a client sees. `message` holds no internals, no prompt and no key."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.type = type or self.type
        self.headers = dict(headers or {})
        self.is_logged = False  # with the request that it ended
        if retry_after_ms is not None:
            self.headers |= retry_headers(retry_after_ms)

    def envelope(self) -> dict[str, object]:
        """The body of an HTTP answer, of an SSE event and of a WebSocket frame alike."""
        return {"error": self.details()}

    def details(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


def retry_headers(milliseconds: int) -> dict[str, str]:
    """Both forms that OpenAI's SDK reads; the exact one wins there, whole seconds serve other clients."""
    return {"retry-after-ms": str(milliseconds), "retry-after": str(math.ceil(milliseconds / 1000))}


class InvalidRequest(APIError):
    status, type, code = 400, "invalid_request_error", "invalid_value"


class UnsupportedParameter(InvalidRequest):
    """A parameter that would change the answer and that we do not honour: refused by name, never ignored."""

    code = "unsupported_parameter"

    def __init__(self, param: str, message: str | None = None) -> None:
        super().__init__(message or f"Unsupported parameter: '{param}'.", param=param)


class AuthenticationFailed(APIError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class PermissionDenied(APIError):
    status, type, code = 403, "invalid_request_error", "permission_denied"


class NotFound(APIError):
    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(APIError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(APIError):
    status, type, code = 408, "invalid_request_error", "request_timeout"


class SlowReader(APIError):
    """A client that takes nothing for too long. It can't be told: its connection ends."""

    status, type, code = 408, "invalid_request_error", "write_timeout"


class Conflict(APIError):
    status, type, code = 409, "invalid_request_error", "conflict"


class PayloadTooLarge(APIError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class RateLimited(APIError):
    """429: a quota, or a full admission queue (code "overloaded").

    `type` is "requests" or "tokens" for a rate, "insufficient_quota" for a spent budget.
    """

    status, type, code = 429, "requests", "rate_limit_exceeded"


class ServerError(APIError):
    status, type, code = 500, "server_error", "server_error"


class Overloaded(APIError):
    status, type, code = 503, "server_error", "overloaded"


class DeadlineExceeded(APIError):
    status, type, code = 504, "server_error", "deadline_exceeded"


def from_engine(error: RequestError, grammar_param: str | None = None) -> APIError:
    """What the client is told when the worker ends a request in an error. `grammar_param` is where its grammar came
    from."""
    match error.code:
        case ErrorCode.OVERLOADED:
            return RateLimited(error.message, code=error.code, retry_after_ms=error.retry_after_ms)
        case ErrorCode.QUEUE_TIMEOUT:
            return Overloaded(error.message, code=error.code, retry_after_ms=error.retry_after_ms)
        case ErrorCode.DEADLINE:
            return DeadlineExceeded(error.message)
        case ErrorCode.INVALID:
            return InvalidRequest(error.message)
        case ErrorCode.UNLOADED:
            return Overloaded(error.message, code=error.code, headers={"x-should-retry": "false"})
        case ErrorCode.INVALID_GRAMMAR:
            message = f"Invalid value for '{grammar_param}': {error.message}."
            return InvalidRequest(message, param=grammar_param, code=error.code)
        case ErrorCode.ENGINE_FAILED:
            return Overloaded(error.message, code="engine_failed", retry_after_ms=error.retry_after_ms)
