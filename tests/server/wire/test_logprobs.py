"""server/wire/logprobs.py, against the SDK's own types."""

from __future__ import annotations

import json

import msgspec
from openai.types.chat.chat_completion import ChoiceLogprobs

from server.text.logprobs import LikelyToken, ToldToken
from server.wire.logprobs import chat_logprobs, legacy_logprobs

WORD = LikelyToken(b"ab", "", -1.0)
HALF = LikelyToken(b"\xe2", "", -2.0)
END = LikelyToken(b"", "<|end|>", -3.0)
FIRST = LikelyToken(b"a", "", None)


def test_nobody_asked() -> None:
    assert chat_logprobs(None) is None
    assert legacy_logprobs(None) is None


def test_chat_s() -> None:
    tokens = [ToldToken(WORD, (WORD, HALF, END), 0), ToldToken(HALF, (), 2)]
    body = msgspec.json.encode(chat_logprobs(tokens))
    parsed = ChoiceLogprobs.model_validate_json(body, strict=True)
    assert json.loads(body) == parsed.to_dict(mode="json", exclude_unset=False)
    assert parsed.content is not None
    one, half = parsed.content
    assert (one.token, one.logprob, one.bytes) == ("ab", -1.0, [97, 98])
    assert [(top.token, top.bytes) for top in one.top_logprobs] == [
        ("ab", [97, 98]),
        ("\\xe2", [226]),
        ("<|end|>", None),
    ]
    assert (half.token, half.top_logprobs) == ("\\xe2", [])


def test_the_legacy_one() -> None:
    tokens = [ToldToken(FIRST, (), 0), ToldToken(WORD, (HALF,), 1), ToldToken(END, (END, WORD), 3)]
    body = json.loads(msgspec.json.encode(legacy_logprobs(tokens)))
    assert body == {
        "tokens": ["a", "ab", "<|end|>"],
        "token_logprobs": [None, -1.0, -3.0],
        "top_logprobs": [None, {"bytes:\\xe2": -2.0, "ab": -1.0}, {"<|end|>": -3.0, "ab": -1.0}],
        "text_offset": [0, 1, 3],
    }
