"""Under which key an answer is kept: a digest of everything that it depends on.

Whatever a Job or a PreparedPrompt holds is part of it unless it is named here as being of no influence, so that a field
added later is in the key without anybody having to remember.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec

from server.job import Job, PreparedPrompt

FORMAT = 1
"""Of the key and of a `Recording`. To be raised when either means something else than before."""
NOT_OF_JOB = {
    "caller": "who asks, of whom the account counts and stands in the key by itself",
    "deployment": "stands in it by its id and its fingerprint",
    "prompts": "stand in it one by one",
    "features": "what is limited",
    "layers": "what is limited",
    "head": "every answer has its own",
    "streamed": "one recording serves both forms",
    "include_usage": "a recording has it",
}
NOT_OF_PROMPT = {
    "new_stream": "made of `reading`, and of the deployment",
    "count_tokens": "of the deployment",
}
_encode = msgspec.msgpack.Encoder().encode


def key_of(job: Job, secret: bytes) -> bytes:
    """Nobody can make another account's key, nor learn from one what was asked."""
    deployment = job.deployment
    dependencies = [
        FORMAT,
        job.caller.principal.account_id,
        deployment.id,
        deployment.fingerprint,
        _but(job, NOT_OF_JOB),
        [_but(prompt, NOT_OF_PROMPT) for prompt in job.prompts],
    ]
    return hmac.digest(secret, _encode(dependencies), hashlib.sha256)


def _but(value: Job | PreparedPrompt, left_out: dict[str, str]) -> dict[str, Any]:
    return {f.name: _ordered(getattr(value, f.name)) for f in fields(value) if f.name not in left_out}


def _ordered(value: Any) -> Any:
    """What has no order of its own is sorted; msgspec carries the rest as it is, or refuses what it does not know."""
    if is_dataclass(value):
        return {f.name: _ordered(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return sorted(value.items())
    return sorted(value) if isinstance(value, Set) else value
