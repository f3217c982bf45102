"""`penstock serve` without a model, and the copied examples that meet it."""

from __future__ import annotations

import json
import math
import tomllib
from typing import Any

import openai
import pytest
import websockets

from tests.penstock_process import API_KEY, ROOT, PenstockProcess

QUESTIONS = ROOT / "models" / "questions"
ASKED = 12


def questions() -> list[tuple[str, str]]:
    """One question of every file, and its answer."""
    pairs = []
    for path in sorted(QUESTIONS.glob("*.toml")):
        question = tomllib.loads(path.read_text(encoding="utf-8"))["question"][0]
        pairs.append((question["phrasings"].strip().splitlines()[0], question["answer"]))
    return pairs[:ASKED]


def ask(client: openai.OpenAI, model: str, question: str) -> str:
    body: Any = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=model, messages=body).choices[0].message.content or ""


def test_it_answers_questions(bundled: PenstockProcess) -> None:
    with bundled.sdk() as client:
        right = sum(ask(client, "gpt-4", question) == answer for question, answer in questions())
    assert right >= 0.7 * len(questions())


def test_it_embeds_while_it_answers(bundled: PenstockProcess) -> None:
    """Under its own name, from the same process: the answer is that of an undisturbed run."""
    question: Any = [{"role": "user", "content": questions()[0][0]}]
    with bundled.sdk() as client:
        undisturbed = ask(client, "tiny-chat", question[0]["content"])
        text, vectors = "", []
        for chunk in client.chat.completions.create(model="tiny-chat", messages=question, stream=True):
            text += chunk.choices[0].delta.content or ""
            if len(vectors) < 5:
                made = client.embeddings.create(
                    model="gpt-4", input=["What is a quota?", "A lease.", "What is a quota?"]
                )
                vectors.append([item.embedding for item in made.data])
    assert text == undisturbed
    assert len(vectors) == 5
    for first, other, again in vectors:
        assert math.hypot(*first) == pytest.approx(1, abs=1e-5)
        assert first == pytest.approx(again, abs=2e-5)
        assert first == pytest.approx(vectors[0][0], abs=2e-5)
        assert first != pytest.approx(other, abs=0.01)


def test_its_aliases(bundled: PenstockProcess) -> None:
    with bundled.sdk() as client:
        answers = {ask(client, name, "Hello!") for name in ("tiny-chat", "gpt-4", "gpt-4o-mini", "gpt-3.5-turbo")}
    assert len(answers) == 1


async def test_the_founding_documents_client(bundled: PenstockProcess) -> None:
    """Its model and its prompt; only the address and the header are another's."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    text = ""
    async with websockets.connect(bundled.websocket_url, additional_headers=headers) as connection:
        request = {"model": "gpt-4", "messages": [{"role": "user", "content": "解释量子计算"}], "stream": True}
        await connection.send(json.dumps(request))
        while True:
            chunk = json.loads(await connection.recv())
            choice = chunk["choices"][0]
            text += choice["delta"].get("content", "")
            if choice["finish_reason"]:
                break
    assert choice["finish_reason"] == "stop"
    assert len(text) > 10
    assert "�" not in text
    assert chunk["model"] == "tiny-chat@1"
