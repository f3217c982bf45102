"""aiohttp's WebSocket client."""

import asyncio
import os

import aiohttp


async def main() -> None:
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    messages = [{"role": "user", "content": "What is a quota?"}]
    body = {"model": os.environ["MODEL"], "max_tokens": 8, "messages": messages}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(os.environ["WEBSOCKET_URL"], headers=headers) as socket,
    ):
        await socket.send_json(body)
        text, reason = "", None
        while reason is None:
            choice = (await socket.receive_json())["choices"][0]
            text, reason = text + (choice["delta"].get("content") or ""), choice["finish_reason"]
    assert text
    assert reason == "length"


asyncio.run(main())
