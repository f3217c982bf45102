"""From outside: an engine that repeats its prompt, a token a byte, shows by its answer and its usage what it was given.

So whatever is masked or restored here was split over as many tokens as it has characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
import websockets.sync.client

from tests.penstock_process import ADMIN_KEY, API_KEY, UNLIMITED, PenstockProcess

CONFIG = f"""
[server]
log_level = "debug"

[[models]]
name = "parrot"
engine = "fake"
options = {{ repeat_prompt = 1, delay_ms = 2 }}

[[models]]
name = "open"
engine = "fake"
pii = false
options = {{ repeat_prompt = 1 }}

[[models]]
name = "vectors"
engine = "fake"
task = "embed"

[pii]
enabled = true
patterns = {{ employee = "EMP-[0-9]{{6}}" }}

[filter]
mask_output = ["hidden-term", "hidden"]
{UNLIMITED}
"""
SECRETS = (
    "bob.secret@example.com", "+49 30 55667788", "4111 1111 1111 1111", "DE89370400440532013000", "203.0.113.77",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "EMP-424242",
)  # fmt: skip
PLACEHOLDERS = ("<EMAIL_1>", "<PHONE_1>", "<CARD_1>", "<IBAN_1>", "<IP_1>", "<API_KEY_1>", "<EMPLOYEE_1>")
TEXT = f"My own <EMAIL_1>, a hidden-term, hiddén; {' and '.join(SECRETS)}, {SECRETS[0]}."
MASKED = f"My own <TEXT_1>, a hidden-term, hiddén; {' and '.join(PLACEHOLDERS)}, {PLACEHOLDERS[0]}."
READ = TEXT.replace("hidden-term", "***")
LENGTH = len(MASKED.encode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("privacy"), CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(server: PenstockProcess) -> Iterator[openai.OpenAI]:
    with server.sdk() as client:
        yield client


MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": TEXT}]


def test_whole(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="parrot", messages=MESSAGES, max_tokens=LENGTH)
    assert answer.choices[0].message.content == READ
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == LENGTH, "the model was given the placeholders"


def test_streamed(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(model="parrot", messages=MESSAGES, max_tokens=LENGTH, stream=True)
    texts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(texts) == READ
    assert len(texts) > 40, "it stays live"


def test_over_a_websocket(server: PenstockProcess) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    text = ""
    with websockets.sync.client.connect(server.websocket_url, additional_headers=headers) as socket:
        socket.send(json.dumps({"model": "parrot", "messages": MESSAGES, "max_tokens": LENGTH}))
        while True:
            choice = json.loads(socket.recv())["choices"][0]
            text += choice["delta"].get("content", "")
            if choice["finish_reason"]:
                break
    assert text == READ


def test_responses(sdk: openai.OpenAI) -> None:
    answer = sdk.responses.create(model="parrot", input=TEXT, max_output_tokens=LENGTH, store=False)
    assert answer.output_text == READ
    events = list(sdk.responses.create(model="parrot", input=TEXT, max_output_tokens=LENGTH, store=False, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == READ
    assert answer.usage is not None
    assert answer.usage.input_tokens == LENGTH


def test_messages(server: PenstockProcess) -> None:
    with anthropic.Anthropic(base_url=server.root_url, api_key=API_KEY, max_retries=0) as client:
        ask: anthropic.types.MessageParam = {"role": "user", "content": TEXT}
        stops = [SECRETS[3]]
        answer = client.messages.create(model="parrot", messages=[ask], max_tokens=LENGTH, stop_sequences=stops)
        counted = client.messages.count_tokens(model="parrot", messages=[ask])
    assert [part.text for part in answer.content if part.type == "text"] == [READ.partition(SECRETS[3])[0]]
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", SECRETS[3])
    assert counted.input_tokens == LENGTH


def test_completions_of_several_prompts(sdk: openai.OpenAI) -> None:
    prompts = [f"a {SECRETS[0]}", f"b {SECRETS[0]} hidden"]
    lengths = [len("a <EMAIL_1>"), len("b <EMAIL_1> hidden")]
    answer = sdk.completions.create(model="parrot", prompt=prompts, max_tokens=lengths[1])
    assert answer.choices[0].text.startswith(prompts[0])
    assert answer.choices[1].text == f"b {SECRETS[0]} ***"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(lengths)


def test_the_prompt_before_each_of_several_answers(sdk: openai.OpenAI) -> None:
    """A term, or a placeholder, that only the two together make is none of either."""
    prompt, length = f"<EMA {SECRETS[0]} hid", len("<EMA <EMAIL_1> hid")
    answer = sdk.completions.create(model="parrot", prompt=prompt, echo=True, n=2, max_tokens=length)
    assert [choice.text for choice in answer.choices] == [2 * prompt] * 2
    met = sdk.completions.create(model="parrot", prompt="den hid", echo=True, max_tokens=3)
    assert met.choices[0].text == "den ***"


def test_tokens_are_not_told_of_text_that_may_be_altered(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="parrot", messages=[{"role": "user", "content": "hello"}], logprobs=True)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "logprobs")


def test_an_end_within_a_placeholder_or_a_term(sdk: openai.OpenAI) -> None:
    for prompt, length, seen in ((f"a {SECRETS[0]}", 6, "a <EMA"), ("a hidden-te", 11, "a ***-te")):
        stream = sdk.completions.create(model="parrot", prompt=prompt, max_tokens=length, stream=True)
        chunks = [chunk.choices[0] for chunk in stream]
        assert "".join(chunk.text for chunk in chunks) == seen
        assert chunks[-1].finish_reason == "length"


def test_stop_strings_are_what_the_client_means(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="parrot", messages=MESSAGES, max_tokens=LENGTH, stop=SECRETS[1])
    assert answer.choices[0].message.content == READ.partition(SECRETS[1])[0]
    assert answer.choices[0].finish_reason == "stop"


def test_a_model_that_is_shown_everything(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="open", messages=MESSAGES, max_tokens=len(TEXT.encode()))
    assert answer.choices[0].message.content == READ
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(TEXT.encode())


def test_vectors_are_of_placeholders(sdk: openai.OpenAI) -> None:
    vectors = sdk.embeddings.create(model="vectors", input=[f"to {SECRETS[0]}", "to <EMAIL_1>", "to eve@x.com"])
    assert vectors.usage.prompt_tokens == len("to <EMAIL_1>") + len("to <TEXT_1>") + len("to <EMAIL_1>")
    assert vectors.data[0].embedding == vectors.data[2].embedding


def test_token_ids_are_refused(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Token ids are not accepted"):
        sdk.completions.create(model="parrot", prompt=[1, 2, 3])
    with pytest.raises(openai.BadRequestError, match="Token ids are not accepted"):
        sdk.embeddings.create(model="vectors", input=[1, 2, 3])


def test_nothing_of_it_is_written_down(server: PenstockProcess, sdk: openai.OpenAI) -> None:
    """Logs at level debug, metrics, and all that lies in the data folder. The last test here: all others came first."""
    with pytest.raises(openai.BadRequestError):
        sdk.chat.completions.create(model="parrot", messages=MESSAGES, max_tokens=10**8)
    with pytest.raises(openai.BadRequestError):
        sdk.chat.completions.create(model="parrot", messages=MESSAGES, temperature=9)
    metrics = httpx.get(f"{server.root_url}/metrics", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).text
    counts = [line for line in metrics.splitlines() if line.startswith("penstock_pii_masked_total")]
    assert len(counts) == len(SECRETS)
    assert any('kind="employee"' in line for line in counts)
    for secret in (*SECRETS, SECRETS[1].replace(" ", ""), "hidden-term"):
        assert secret not in metrics
        for path in _files(server.folder):
            assert secret.encode() not in path.read_bytes(), path
    assert "parrot@1" in server.log.read_text()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "penstock.toml"]
