"""instructor, as its documentation uses it, in both ways that hold an answer to a model."""

import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Weather(BaseModel, extra="forbid"):  # else any key may follow, and the model has never learned when to stop
    city: Literal["Rome", "Oslo"]
    sunny: bool


ONE_CALL = {"parallel_tool_calls": False}
for mode, options in ((instructor.Mode.TOOLS, ONE_CALL), (instructor.Mode.JSON_SCHEMA, {})):
    client = instructor.from_openai(OpenAI(), mode=mode)
    weather = client.chat.completions.create(
        model=os.environ["MODEL"],
        response_model=Weather,
        messages=[{"role": "user", "content": "The weather in Rome?"}],
        max_tokens=200,
        max_retries=0,
        **options,
    )
    assert isinstance(weather, Weather), mode
