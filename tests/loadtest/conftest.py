"""A tiny OpenAI-compatible server on a free loopback port; the model's name says how it behaves."""

import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

REFUSED_KEY = "refused-key-0123456789"
USAGE = {"prompt_tokens": 7, "completion_tokens": 6}


# Each reading is ten steps later than the last.
METRICS = """# TYPE penstock_engine_steps counter
penstock_engine_steps_total{{model="ok",version="1"}} {steps}
penstock_engine_steps_total{{model="second",version="1"}} 5
"""


def sse(payload: str) -> str:
    return f"data: {payload}\n\n"


def frames(behaviour: str, *, chat: bool) -> list[str]:
    """Three events of two tokens each, then the end that `behaviour` asks for."""
    role = ['{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}'] if chat else []
    output = '{"choices":[{"delta":{"content":" ab cd"}}]}' if chat else '{"choices":[{"text":" ab cd"}]}'
    start = [": ping\n\n", *(sse(payload) for payload in [*role, output, output, output])]
    if behaviour == "error-event":
        return [*start, sse('{"error":{"message":"engine died","type":"server_error","code":null}}')]
    if behaviour in ("cut", "reset"):
        return start
    finish = sse('{"choices":[{"delta":{},"finish_reason":"length"}]}')
    usage = sse('{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":6}}')
    return [*start, finish, usage, sse("[DONE]")]


async def answer(behaviour: str, *, chat: bool) -> AsyncIterator[str]:
    for frame in frames(behaviour, chat=chat):
        yield frame
    if behaviour == "reset":
        raise ConnectionResetError("the engine is gone")


def refusal(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "t", "param": None, "code": code}}, status)


def create_app() -> FastAPI:
    app = FastAPI()
    app.state.bodies = []
    app.state.scrapes = 0

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        if request.headers.get("authorization") == f"Bearer {REFUSED_KEY}":
            return refusal(401, "invalid_api_key", f"Incorrect API key provided: {REFUSED_KEY}")
        return JSONResponse({"object": "list", "data": [{"id": "ok"}, {"id": "second"}]})

    @app.get("/metrics")
    async def metrics() -> Response:
        app.state.scrapes += 1
        return Response(METRICS.format(steps=10 * app.state.scrapes), media_type="text/plain")

    @app.get("/v2/models/{model}/stats")
    async def triton_stats(model: str) -> Response:
        app.state.scrapes += 1
        counts = {"inference_count": 12 * app.state.scrapes, "execution_count": 3 * app.state.scrapes}
        return JSONResponse({"model_stats": [{"name": model, "version": "1", **counts}]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await respond(request, chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await respond(request, chat=False)

    async def respond(request: Request, *, chat: bool) -> Response:
        body: dict[str, Any] = await request.json()
        app.state.bodies.append(body)
        behaviour = body["model"]
        if behaviour == "busy":
            return refusal(429, "rate_limit_exceeded", "slow down")
        if behaviour == "every-other" and len(app.state.bodies) % 2:
            return refusal(503, "overloaded", "try later")
        if behaviour == "not-streaming":
            return JSONResponse({"choices": []})
        return StreamingResponse(answer(behaviour, chat=chat), media_type="text/event-stream")

    return app


class FakeOpenAI:
    """`url` has no `/v1`; `bodies` are the requests seen since the test began."""

    def __init__(self) -> None:
        self.app = create_app()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(self.app, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],), daemon=True)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        bodies: list[dict[str, Any]] = self.app.state.bodies
        return bodies

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)


@pytest.fixture(scope="session")
def running_server() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running_server: FakeOpenAI) -> FakeOpenAI:
    running_server.bodies.clear()
    running_server.app.state.scrapes = 0
    return running_server


@pytest.fixture
def dead_url() -> str:
    """A loopback port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def refused_key() -> str:
    return REFUSED_KEY


@pytest.fixture(autouse=True)
def no_keys_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PENSTOCK_API_KEY", "OPENAI_API_KEY", "PENSTOCK_BENCH_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server here has counted everything when it answers."""
    monkeypatch.setattr("loadtest.runner.SETTLE_S", 0)
