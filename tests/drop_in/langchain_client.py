"""LangChain's ChatOpenAI and OpenAIEmbeddings, as its documentation uses them."""

import os
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Weather(BaseModel):
    """How the weather is."""

    city: Literal["Rome", "Oslo"]
    sunny: bool


@tool
def get_weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


model = ChatOpenAI(model=os.environ["MODEL"], temperature=0, max_tokens=120)
answer = model.invoke([("system", "You are brief."), ("human", "What is a quota?")])
assert answer.content
assert answer.usage_metadata
assert answer.usage_metadata["output_tokens"] > 0
streamed = "".join(str(chunk.content) for chunk in model.stream("What is a quota?"))
assert streamed == model.invoke("What is a quota?").content

for method in ("json_schema", "function_calling"):
    held = model.with_structured_output(Weather, method=method, strict=True).invoke("The weather in Rome?")
    assert isinstance(held, Weather), (method, held)

bound = model.bind_tools([get_weather], tool_choice="get_weather", strict=True, parallel_tool_calls=False)
called = bound.invoke("The weather in Rome?")
assert "sunny" in get_weather.invoke(called.tool_calls[0]).content

vectors = OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False).embed_documents(["one", "two"])
assert len(vectors) == 2
assert len(vectors[0]) == len(vectors[1]) > 1
