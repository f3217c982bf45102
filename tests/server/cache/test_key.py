"""What an answer depends on is in its key: every field that there is, those of later days included."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from engines.types import Grammar, GrammarKind, SamplingParams, TextSpan
from server.cache.key import NOT_OF_JOB, NOT_OF_PROMPT, key_of
from server.job import Job, PreparedPrompt, Reading
from tests.server.house import PRINCIPAL, House

SECRET = b"secret"
SPECIAL = {  # values of fields whose types do not say what another one is
    "grammar": Grammar(GrammarKind.JSON_SCHEMA, "{}"),
    "seed": 5,
    "echo": "x",
    "restores": b"x",
    "logprobs": 2,
    "prompt_logprobs": 2,
    "grammar_param": "tools",
    "max_calls": 1,
    "texts": [TextSpan(3, 0)],
    "reading": Reading(mask="m"),
}


def job_of(**options: Any) -> Job:
    return House().generation(**options).job


def another(name: str, value: Any) -> Any:
    """A value of the same type. A field of a type that is not known here wants an entry above."""
    if name in SPECIAL:
        return SPECIAL[name]
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case list() | tuple():
            return [*value, 1] if isinstance(value, list) else (*value, "x")
        case frozenset():
            return value | {max(value, default=0) + 1 if not any(isinstance(v, str) for v in value) else "x"}
        case dict():
            return {**value, 1: 1.5}
    if is_dataclass(value) and not isinstance(value, type):
        first = fields(value)[0].name
        return replace(value, **{first: another(first, getattr(value, first))})
    raise AssertionError(f"{name}: add another value of it to SPECIAL")


def changed(job: Job, **changes: Any) -> Job:
    """With this in its prompt."""
    return replace(job, prompts=[replace(job.prompts[0], **changes)])


def different(job: Job, other: Job) -> bool:
    return key_of(job, SECRET) != key_of(other, SECRET)


def test_the_same_request_has_the_same_key() -> None:
    assert not different(job_of(), job_of())
    assert not different(job_of(streamed=True), job_of(streamed=False))
    assert not different(job_of(), job_of(principal=replace(PRINCIPAL, key_id="other"), client_request_id="x"))


@pytest.mark.parametrize("name", [f.name for f in fields(SamplingParams)])
def test_every_sampling_parameter_counts(name: str) -> None:
    job = job_of()
    sampling = job.prompts[0].sampling
    other = replace(sampling, **{name: another(name, getattr(sampling, name))})
    assert different(job, changed(job, sampling=other))


@pytest.mark.parametrize("name", [f.name for f in fields(Reading)])
def test_everything_that_makes_text_of_tokens_counts(name: str) -> None:
    job = job_of()
    reading = job.prompts[0].reading
    assert different(job, changed(job, reading=replace(reading, **{name: another(name, getattr(reading, name))})))


@pytest.mark.parametrize("name", [f.name for f in fields(PreparedPrompt) if f.name not in NOT_OF_PROMPT])
def test_everything_of_a_prompt_counts(name: str) -> None:
    job = job_of()
    assert different(job, changed(job, **{name: another(name, getattr(job.prompts[0], name))}))


@pytest.mark.parametrize("name", [f.name for f in fields(Job) if f.name not in NOT_OF_JOB])
def test_everything_of_a_request_counts(name: str) -> None:
    job = job_of()
    assert different(job, replace(job, **{name: another(name, getattr(job, name))}))


def test_what_does_not_count_is_there() -> None:
    """A field that was renamed would silently count."""
    assert NOT_OF_JOB.keys() <= {f.name for f in fields(Job)}
    assert NOT_OF_PROMPT.keys() <= {f.name for f in fields(PreparedPrompt)}


def test_account_model_and_secret_count() -> None:
    job = job_of()
    assert different(job, job_of(principal=replace(PRINCIPAL, account_id="other")))
    assert different(job, replace(job, deployment=replace(job.deployment, version="2")))
    assert different(job, replace(job, deployment=replace(job.deployment, fingerprint="other")))
    assert different(job, job_of(num_prompts=2))
    assert key_of(job, SECRET) != key_of(job, b"other")


def test_the_order_of_what_has_none_does_not_count() -> None:
    job = job_of()
    sampling = job.prompts[0].sampling
    biases: list[dict[int, float]] = [{3: 1.0, 1: 2.0, 2: 0.5}, {1: 2.0, 2: 0.5, 3: 1.0}]
    one, two = (changed(job, sampling=replace(sampling, logit_bias=bias)) for bias in biases)
    assert not different(one, two)
    names = [frozenset(["a", "b", "c", "d"]), frozenset(["d", "c", "b", "a"])]
    one, two = (changed(job, reading=Reading(tool_names=some)) for some in names)
    assert not different(one, two)
