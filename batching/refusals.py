"""Why a request is not run: errors in words for its client."""

from __future__ import annotations

from engines.types import EngineInfo, ErrorCode, GenerationRequest, RequestError

AWAY_RETRY_MS = 2000


def check_request(request: GenerationRequest, info: EngineInfo, max_model_len: int) -> RequestError | None:
    """What the engine could not run, whatever its state. The gateway has checked the same things: this is what keeps
    one malformed request from failing a step, and with it everybody else's requests."""
    prompt, output = request.prompt_token_ids, request.output_token_ids
    if request.texts:
        message = "This engine has no embeddings of a generating model."
    elif output and not request.sampling.can_continue(info.continuation):
        message = "The engine can't go on with another one's answer."
    elif not 0 < len(prompt) < max_model_len:
        message = f"The prompt has {len(prompt)} tokens; this model takes 1 to {max_model_len - 1}."
    elif min(prompt) < 0 or (info.vocab_size and max(prompt) >= info.vocab_size):
        message = f"The prompt has a token id outside the vocabulary of {info.vocab_size} tokens."
    elif request.sampling.max_tokens < 1:
        message = "max_tokens: expected at least 1."
    elif output and _is_answered(request, info, max_model_len):
        message = "The answer that was begun leaves nothing to add."
    elif request.sampling.grammar is not None and not info.takes_grammars:
        message = "The engine of this model can't hold its answers to a grammar."
    elif not info.tells_logprobs and _asks_for_logprobs(request):
        message = "The engine of this model does not tell how likely tokens are."
    else:
        return None
    return RequestError(ErrorCode.INVALID, message)


def _asks_for_logprobs(request: GenerationRequest) -> bool:
    return request.sampling.logprobs is not None or request.sampling.prompt_logprobs is not None


def _is_answered(request: GenerationRequest, info: EngineInfo, max_model_len: int) -> bool:
    """Or is no beginning of one."""
    output = request.output_token_ids
    is_known = min(output) >= 0 and (not info.vocab_size or max(output) < info.vocab_size)
    room = min(request.sampling.max_tokens, max_model_len - len(request.prompt_token_ids))
    return not is_known or len(output) >= room


def check_texts(request: GenerationRequest, info: EngineInfo) -> RequestError | None:
    """As `check_request`, for texts to be turned into vectors, which may fill the context."""
    lengths = [span.num_tokens for span in request.texts]
    ids = request.prompt_token_ids
    if not lengths or sum(lengths) != len(ids):
        message = "This model turns texts into vectors, and does nothing else."
    elif not 0 < min(lengths) <= max(lengths) <= info.max_model_len:
        message = f"A text has {max(lengths)} tokens; this model takes 1 to {info.max_model_len}."
    elif min(ids) < 0 or (info.vocab_size and max(ids) >= info.vocab_size):
        message = f"A text has a token id outside the vocabulary of {info.vocab_size} tokens."
    else:
        return None
    return RequestError(ErrorCode.INVALID, message)


def overloaded(num_waiting: int, retry_after_ms: int) -> RequestError:
    message = f"The model is at capacity: {num_waiting} requests are waiting."
    return RequestError(ErrorCode.OVERLOADED, message, retry_after_ms)


def waited_in_vain(request: GenerationRequest, now: float, retry_after_ms: int) -> RequestError:
    if now >= request.deadline:
        return RequestError(ErrorCode.DEADLINE, "The request's time ran out while it was waiting.")
    message = f"The model is at capacity: the request waited {now - request.arrival:.1f} s for a place."
    return RequestError(ErrorCode.QUEUE_TIMEOUT, message, retry_after_ms)


def too_large() -> RequestError:
    return RequestError(ErrorCode.ENGINE_FAILED, "The engine has too little memory for this request.")


def away() -> RequestError:
    return RequestError(ErrorCode.ENGINE_FAILED, "The model's server can't be reached at the moment.", AWAY_RETRY_MS)
