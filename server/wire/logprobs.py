"""How likely an answer's tokens were, in OpenAI's two shapes: chat's, and the one of legacy completions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from server.text.logprobs import LikelyToken, ToldToken


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None  # none of a special token


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """Of the tokens that made the content: `bytes` of all of them together are its UTF-8."""

    content: list[TokenLogprob]
    refusal: None = None


class ResponseTopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ResponseLogprob(msgspec.Struct, frozen=True):
    """Of an output text of `/v1/responses`."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ResponseTopLogprob]


class DeltaTopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float


class DeltaLogprob(msgspec.Struct, frozen=True):
    """The same in an event, which has no bytes."""

    token: str
    logprob: float
    top_logprobs: list[DeltaTopLogprob]


class LegacyLogprobs(msgspec.Struct, frozen=True):
    """Of every token, the prompt's too where it is echoed, and the one that ended the answer."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def chat_logprobs(tokens: Sequence[ToldToken] | None) -> ChoiceLogprobs | None:
    """None: nobody asked."""
    return None if tokens is None else ChoiceLogprobs([_content_token(told) for told in tokens])


def _content_token(told: ToldToken) -> TokenLogprob:
    one = _top_logprob(told.token)
    return TokenLogprob(one.token, one.logprob, one.bytes, [_top_logprob(each) for each in told.top])


def _top_logprob(token: LikelyToken) -> TopLogprob:
    text = token.escaped if token.text is None else token.text
    return TopLogprob(text, token.logprob or 0.0, list(token.data) or None)


def response_logprobs(tokens: Sequence[ToldToken]) -> tuple[ResponseLogprob, ...]:
    return tuple(
        ResponseLogprob(one.token, one.logprob, one.bytes or [], [_response_top(top) for top in one.top_logprobs])
        for one in map(_content_token, tokens)
    )


def _response_top(top: TopLogprob) -> ResponseTopLogprob:
    return ResponseTopLogprob(top.token, top.logprob, top.bytes or [])


def delta_logprobs(tokens: Sequence[ToldToken]) -> tuple[DeltaLogprob, ...]:
    return tuple(
        DeltaLogprob(one.token, one.logprob, [DeltaTopLogprob(top.token, top.logprob) for top in one.top_logprobs])
        for one in map(_content_token, tokens)
    )


def legacy_logprobs(tokens: Sequence[ToldToken] | None) -> LegacyLogprobs | None:
    """None: nobody asked."""
    if tokens is None:
        return None
    return LegacyLogprobs(
        [_legacy_text(told.token) for told in tokens],
        [told.token.logprob for told in tokens],
        [_legacy_top(told) for told in tokens],
        [told.offset for told in tokens],
    )


def _legacy_top(told: ToldToken) -> dict[str, float] | None:
    """The token itself is there too, be it one of the likeliest or not. Of two that read alike, the likelier."""
    if told.token.logprob is None:
        return None
    top: dict[str, float] = {}
    for token in (*told.top, told.token):
        if token.logprob is not None:
            top.setdefault(_legacy_text(token), token.logprob)
    return top


def _legacy_text(token: LikelyToken) -> str:
    return f"bytes:{token.escaped}" if token.text is None else token.text
