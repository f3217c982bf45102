"""LiteLLM as a client, as its documentation calls a server that speaks OpenAI's language."""

import asyncio
import os
from typing import Literal

import litellm
from pydantic import BaseModel

call = {
    "model": f"openai/{os.environ['MODEL']}",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
    "messages": [{"role": "user", "content": "What is a quota?"}],
    "temperature": 0,
    "max_tokens": 32,
}
whole = litellm.completion(**call).choices[0].message.content
assert whole
assert "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **call)) == whole


async def main() -> None:
    assert (await litellm.acompletion(**call)).choices[0].message.content == whole
    stream = await litellm.acompletion(stream=True, stream_options={"include_usage": True}, **call)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens > 0


asyncio.run(main())


class Weather(BaseModel):
    city: Literal["Rome", "Oslo"]
    sunny: bool


held = litellm.completion(**(call | {"max_tokens": 200}), response_format=Weather)
Weather.model_validate_json(held.choices[0].message.content)
vectors = litellm.embedding(
    model="openai/vectors", api_base=call["api_base"], api_key=call["api_key"], input=["one", "two"]
)
assert len(vectors.data) == 2
try:
    litellm.completion(**(call | {"model": "openai/nobody"}))
except litellm.NotFoundError:
    pass
else:
    raise AssertionError("nobody answered")
