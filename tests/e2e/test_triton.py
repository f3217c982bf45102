"""Models on a real Triton behind the whole server, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from engines.fake_tokens import fake_answer
from tests.byte_tokenizer import END, write_byte_tokenizer
from tests.clients import expected_text, until
from tests.penstock_process import ADMIN_KEY, ROOT, UNLIMITED, PenstockProcess
from tests.triton_models import TritonModel
from tests.triton_server import TritonServer, running_triton

pytestmark = pytest.mark.triton

CONVENTIONS = ("vllm", "ensemble@1", "tokens", "llmapi")
ENDLESS = 4000


def declare(triton: TritonServer, tokenizer: Path, model: str, version: str = "1") -> str:
    return f"""
[[models]]
name = "{model}"
version = "{version}"
engine = "triton"
url = "{triton.url}"
triton_version = "{version}"
tokenizer = "{tokenizer}"
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def server(
    triton: TritonServer, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PenstockProcess]:
    models = [("vllm", "1"), ("vllm-slow", "1"), ("ensemble", "1"), ("ensemble", "2"), ("tokens", "1"), ("llmapi", "1")]
    config = "".join(declare(triton, tokenizer, *model) for model in models)
    routing = '[routing]\ndefault_versions = { ensemble = "1" }\n'
    with PenstockProcess(tmp_path_factory.mktemp("triton-gateway"), config + routing + UNLIMITED) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: PenstockProcess) -> Iterator[openai.OpenAI]:
    with server.sdk() as client:
        yield client


def chat(client: openai.OpenAI, model: str, prompt: str, max_tokens: int = 12, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=max_tokens, **fields)


def stream(client: openai.OpenAI, model: str, prompt: str, **fields: Any) -> tuple[str, str | None, Any]:
    """Text, finish reason, usage."""
    chunks = list(chat(client, model, prompt, stream=True, stream_options={"include_usage": True}, **fields))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert len(reasons) == 1
    return "".join(choice.delta.content or "" for choice in choices), reasons[0], chunks[-1].usage


# --- answers


@pytest.mark.parametrize("model", CONVENTIONS)
def test_a_chat(client: openai.OpenAI, model: str) -> None:
    answer = chat(client, model, "hello")
    assert answer.choices[0].message.content == expected_text("hello", 12)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 12)


@pytest.mark.parametrize("model", CONVENTIONS)
def test_a_stream_to_the_model_s_own_end(client: openai.OpenAI, model: str) -> None:
    text, reason, usage = stream(client, model, "!stop")
    assert (text, reason) == (expected_text("!stop", 5), "stop")
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 5)


@pytest.mark.parametrize("model", CONVENTIONS)
def test_stop_strings(client: openai.OpenAI, model: str) -> None:
    whole = expected_text("hello", 40)
    text, reason, usage = stream(client, model, "hello", max_tokens=40, stop=[whole[9:12]])
    assert (text, reason) == (whole[:9], "stop")
    assert usage.completion_tokens >= 12


@pytest.mark.parametrize("model", CONVENTIONS)
def test_a_completion_of_text_and_of_token_ids(client: openai.OpenAI, model: str) -> None:
    for prompt in ("hello", list(b"hello")):
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=8)
        assert answer.choices[0].text == expected_text("hello", 8)


@pytest.mark.parametrize("model", CONVENTIONS)
def test_an_error_of_the_model(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client, model, "!fail")
    assert (caught.value.status_code, caught.value.code) == (503, "engine_failed")
    with pytest.raises(openai.APIError, match="failed on this request"):
        list(chat(client, model, "!fail", stream=True))
    assert chat(client, model, "hello").choices[0].finish_reason == "length", "nobody else is touched"


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("vllm", "logit_bias", {"5": 1}),
        ("vllm", "logprobs", True),
        ("ensemble", "logprobs", True),
        ("tokens", "logprobs", True),
        ("llmapi", "logprobs", True),
        ("ensemble", "min_p", 0.5),
        ("ensemble", "stop_token_ids", [65]),
        ("tokens", "logit_bias", {"5": 1}),
        ("llmapi", "repetition_penalty", 1.5),
        ("llmapi", "min_tokens", 2),
    ],
)
def test_a_parameter_that_the_convention_lacks(client: openai.OpenAI, model: str, name: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, model, "hello", extra_body={name: value})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", name)


def test_several_answers_and_an_echo_need_no_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="vllm", prompt="hello", n=2, echo=True, max_tokens=3)
    assert [choice.text[:5] for choice in answer.choices] == ["hello", "hello"]
    for fields in ({"logprobs": 0}, {"best_of": 2}, {"logprobs": 1, "echo": True, "max_tokens": 0}):
        with pytest.raises(openai.BadRequestError, match="does not tell how likely"):
            client.completions.create(**{"model": "vllm", "prompt": "hello", "max_tokens": 3, **fields})


def test_a_message_can_t_pose_as_a_special_token(client: openai.OpenAI) -> None:
    """Where text is spoken it would become one; where ids are, it is plain text."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, "vllm", f"a{END}b")
    assert caught.value.param == "messages"
    assert chat(client, "tokens", f"a{END}b").choices[0].message.content == expected_text(f"a{END}b", 12)


def test_two_versions_of_one_model(client: openai.OpenAI) -> None:
    second = bytes(fake_answer([*b"hello", 2], 12)).decode()
    answers = {name: chat(client, name, "hello") for name in ("ensemble", "ensemble@1", "ensemble@2")}
    assert [a.choices[0].message.content for a in answers.values()] == [expected_text("hello", 12)] * 2 + [second]
    assert answers["ensemble@2"].model == "ensemble@2"


async def test_a_disconnect_stops_the_model(server: PenstockProcess, client: openai.OpenAI) -> None:
    with chat(client, "vllm-slow", "hello", ENDLESS, stream=True) as running:
        for _ in range(3):
            next(running)
        assert chat(client, "vllm-slow", "!running").choices[0].message.content == "1"
    await until(lambda: chat(client, "vllm-slow", "!running").choices[0].message.content == "0", "the end of the work")
    server.wait_for_metric("penstock_requests_running", 0)


# --- faults


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    models = [TritonModel("m", "vllm", delay_ms=20)]
    yield from running_triton(tmp_path_factory.mktemp("triton-of-the-gateway"), models)


@pytest.fixture(scope="module")
def gateway(
    mortal: TritonServer, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PenstockProcess]:
    config = declare(mortal, tokenizer, "m") + UNLIMITED
    with PenstockProcess(tmp_path_factory.mktemp("mortal-gateway"), config) as running:
        yield running


def cut_short(client: openai.OpenAI, fault: Callable[[], None]) -> None:
    """A stream under way, the fault, and its end in an error."""
    running = chat(client, "m", "hello", ENDLESS, stream=True)
    next(running)
    fault()
    with pytest.raises(openai.APIError) as caught:
        list(running)
    assert caught.value.code == "engine_failed"


async def well_again(gateway: PenstockProcess, client: openai.OpenAI) -> None:
    def answers() -> bool:
        try:
            return chat(client, "m", "hello").choices[0].message.content == expected_text("hello", 12)
        except openai.InternalServerError:
            return False

    await until(answers, "its return", 60)
    assert readiness(gateway) == 200
    gateway.wait_for_metric("penstock_requests_running", 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_model_whose_process_is_gone_is_cured(
    mortal: TritonServer, gateway: PenstockProcess, number: signal.Signals
) -> None:
    with gateway.sdk() as client:
        await well_again(gateway, client)
        stub = mortal.stubs("m")[-1]
        cut_short(client, lambda: os.kill(stub, number))
        await well_again(gateway, client)


async def test_a_server_that_dies_and_comes_back(mortal: TritonServer, gateway: PenstockProcess) -> None:
    with gateway.sdk() as client:
        await well_again(gateway, client)
        cut_short(client, mortal.kill)
        await until(lambda: readiness(gateway) == 503, "the gateway's knowing")
        with pytest.raises(openai.InternalServerError, match="m@1") as refused:
            chat(client, "m", "hello")
        assert (refused.value.status_code, refused.value.code) == (503, "engine_away")
        assert int(refused.value.response.headers["retry-after-ms"]) > 0
        mortal.start()
        await well_again(gateway, client)


def control(gateway: PenstockProcess, action: str) -> httpx.Response:
    with gateway.http(ADMIN_KEY) as admin:
        return admin.post(f"/admin/v1/models/m@1/{action}")


async def test_unloaded_and_loaded_by_the_admin_api(mortal: TritonServer, gateway: PenstockProcess) -> None:
    with gateway.sdk() as client:
        await well_again(gateway, client)
        with chat(client, "m", "hello", 150, stream=True) as running:
            first = next(running).choices[0].delta.content or ""
            unloading = asyncio.create_task(asyncio.to_thread(control, gateway, "unload"))
            await until(lambda: model_state(gateway) == "unloading", "the unload")
            with pytest.raises(openai.InternalServerError, match="m@1") as refused:
                chat(client, "m", "hello")
            assert (refused.value.status_code, refused.value.code) == (503, "model_unloaded")
            assert mortal.states("m") == {"1": "READY"}
            text = first + "".join(chunk.choices[0].delta.content or "" for chunk in running)
        assert text == expected_text("hello", 150)
        answer = await unloading
        assert (answer.status_code, answer.json()["state"]) == (200, "unloaded")
        assert mortal.states("m") == {"1": "UNAVAILABLE"}
        assert not gateway.worker_pids()
        assert readiness(gateway) == 200
        await asyncio.sleep(1.5)
        assert mortal.states("m") == {"1": "UNAVAILABLE"}
        assert control(gateway, "load").json()["state"] == "ready"
        assert mortal.states("m") == {"1": "READY"}
        assert chat(client, "m", "hello").choices[0].message.content == expected_text("hello", 12)


def model_state(gateway: PenstockProcess) -> str:
    with gateway.http(ADMIN_KEY) as admin:
        state: str = admin.get("/admin/v1/models/m@1").json()["state"]
    return state


async def test_a_load_that_triton_refuses(mortal: TritonServer, gateway: PenstockProcess) -> None:
    assert control(gateway, "unload").json()["state"] == "unloaded"
    mortal.kill()
    answer = control(gateway, "load")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "load_failed")
    assert "no Triton can be reached" in answer.json()["error"]["message"]
    assert model_state(gateway) == "failed"
    assert readiness(gateway) == 200
    mortal.start()
    assert control(gateway, "load").json()["state"] == "ready"


def test_a_start_loads_what_was_unloaded(mortal: TritonServer, tokenizer: Path, tmp_path: Path) -> None:
    mortal.control("m", "unload")
    with PenstockProcess(tmp_path, declare(mortal, tokenizer, "m") + UNLIMITED) as server, server.sdk() as client:
        assert chat(client, "m", "hello").choices[0].message.content == expected_text("hello", 12)


def readiness(server: PenstockProcess) -> int:
    return httpx.get(f"{server.root_url}/readyz").status_code


# --- the command line


def test_served_by_flags_alone(triton: TritonServer, tokenizer: Path, tmp_path: Path) -> None:
    flags = ["--engine", "triton", "--triton-url", triton.url, "--tokenizer", str(tokenizer), "llmapi"]
    with PenstockProcess(tmp_path, UNLIMITED, *flags) as server, server.sdk() as client:
        assert chat(client, "llmapi", "hello").choices[0].message.content == expected_text("hello", 12)


@pytest.mark.parametrize(
    ("url", "model", "words"),
    [
        ("127.0.0.1:1", "vllm", "127.0.0.1:1: no Triton can be reached"),
        ("", "nobody", "model nobody: Triton does not serve it"),
        ("", "wrong-type", "input max_tokens is FP32, expected INT32 or INT64"),
    ],
)
def test_what_can_t_be_served_is_told_in_one_line(
    triton: TritonServer, tokenizer: Path, tmp_path: Path, url: str, model: str, words: str
) -> None:
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--data-dir", str(tmp_path)]
    command += ["--engine", "triton", "--triton-url", url or triton.url, "--tokenizer", str(tokenizer), model]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("penstock: ")]
    assert words in line
