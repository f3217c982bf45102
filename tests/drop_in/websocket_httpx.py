"""httpx-ws."""

import os

import httpx
from httpx_ws import connect_ws

headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
body = {"model": os.environ["MODEL"], "max_tokens": 8, "messages": [{"role": "user", "content": "What is a quota?"}]}
with httpx.Client(headers=headers) as client, connect_ws(os.environ["WEBSOCKET_URL"], client) as socket:
    socket.send_json(body)
    text, reason = "", None
    while reason is None:
        choice = socket.receive_json()["choices"][0]
        text, reason = text + (choice["delta"].get("content") or ""), choice["finish_reason"]
assert text
assert reason == "length"
