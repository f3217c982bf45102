"""One good request to each route that takes a body. A route without one here fails the suite."""

from __future__ import annotations

from typing import Any

MESSAGES = [{"role": "user", "content": "hello"}]
TEXT = {"model": "echo", "input": "hello"}
RERANK = {"model": "pairs", "query": "which?", "documents": ["this", "that"]}
SCORE = {"model": "pairs", "text_1": "this", "text_2": "that"}
TOKENIZE, DETOKENIZE = {"model": "echo", "prompt": "hello"}, {"model": "echo", "tokens": [104, 105]}
PLAN = {"account": {"rpm": 1000}}
GOOD: dict[str, dict[str, Any]] = {
    "POST /v1/chat/completions": {"model": "echo", "messages": MESSAGES, "max_tokens": 4},
    "POST /v1/completions": {"model": "echo", "prompt": "hello", "max_tokens": 4},
    "POST /v1/messages": {"model": "echo", "messages": MESSAGES, "max_tokens": 4},
    "POST /v1/messages/count_tokens": {"model": "echo", "messages": MESSAGES},
    "POST /v1/responses": TEXT | {"max_output_tokens": 16, "store": False},
    "POST /v1/responses/compact": TEXT,
    "POST /v1/responses/input_tokens": TEXT,
    "POST /v1/responses/{response_id}/cancel": {},
    "POST /v1/embeddings": {"model": "vectors", "input": "hello"},
    "POST /v1/moderations": {"input": "hello"},
    "POST /v1/batches": {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    "POST /v1/batches/{batch_id}/cancel": {},
    "POST /v1/files": {"purpose": "user_data"},  # and the file: a form
    **dict.fromkeys(("POST /rerank", "POST /v1/rerank", "POST /v2/rerank"), RERANK),
    **dict.fromkeys(("POST /score", "POST /v1/score"), SCORE),
    **dict.fromkeys(("POST /tokenize", "POST /v1/tokenize"), TOKENIZE),
    **dict.fromkeys(("POST /detokenize", "POST /v1/detokenize"), DETOKENIZE),
    "POST /admin/v1/accounts": {"name": "new", "plan": "default"},
    "PATCH /admin/v1/accounts/{account}": {"plan": "default"},
    "PUT /admin/v1/accounts/{account}/limits": PLAN,
    "POST /admin/v1/keys": {"account": "default", "name": "new"},
    "POST /admin/v1/keys/{key_id}/revoke": {},
    "POST /admin/v1/models/{deployment}/load": {},
    "POST /admin/v1/models/{deployment}/unload": {"drain_seconds": 1},
    "PUT /admin/v1/plans/{name}": PLAN,
}
BOUNDARY = "a-boundary"


def form(fields: dict[str, str], file: bytes = b'{"custom_id": "1"}\n') -> bytes:
    """What `/v1/files` takes."""
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}' for name in fields]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    return "\r\n".join([*parts, head]).encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()
