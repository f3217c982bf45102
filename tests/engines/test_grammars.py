"""Grammars: how they are compiled, what they leave to choose, and what becomes of those that are meant to harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.constraint import GrammarError
from engines.grammars import zygote
from engines.grammars.store import GrammarStore
from engines.sampling import Sampler
from engines.types import ErrorCode, Grammar, GrammarKind, RequestError, SamplingParams
from server.text.tokenizer import load_tokenizer
from tests.grammar_files import BUNDLED, real_schemas, validate, write_vocabulary

TOKENIZER = load_tokenizer(BUNDLED)
VOCABULARY = TOKENIZER.vocab_size + 3  # logits are often padded
END = max(TOKENIZER.eos_token_ids)
PAIR = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["yes", "no"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
UNSATISFIABLE = {"type": "array", "items": {"type": "string"}, "enum": ["a", "b"]}


def schema(value: Any) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture
async def store(vocabulary: Path) -> AsyncIterator[GrammarStore]:
    made = GrammarStore(str(vocabulary))
    yield made
    await made.close()


def params(grammar: Grammar, **changes: Any) -> SamplingParams:
    values = {"max_tokens": 1000, "seed": 7, "stop_token_ids": frozenset({END}), "grammar": grammar}
    return SamplingParams(**(values | changes))


def sample(store: GrammarStore, sampling: SamplingParams, seed: int = 0) -> tuple[str, RequestError | None]:
    """An answer of random logits, to the end of its grammar or to a stop token."""
    sampler = Sampler(VOCABULARY, store)
    sampler.add(0, [], sampling)
    noise = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < sampling.max_tokens:
        step = sampler.sample([0], noise.normal(0, 4, (1, VOCABULARY)).astype(np.float32))
        if step.token_ids[0] in sampling.stop_token_ids:
            break
        tokens += step.token_ids
        if 0 in step.ended:
            return TOKENIZER.decode(tokens), step.ended[0]
    return TOKENIZER.decode(tokens), None


CLOSING = {i: 12.0 for i in range(VOCABULARY - 3) if TOKENIZER.token_bytes(i) in (b'"', b"}", b"]", b'"}', b'"]')}


async def test_answers_are_of_the_schema(store: GrammarStore) -> None:
    grammar = schema(PAIR)
    assert await store.prepare(grammar) is None
    for seed in range(20):
        text, problem = sample(store, params(grammar, logit_bias=CLOSING), seed)
        assert problem is None
        answer = json.loads(text)
        assert list(answer) == ["a", "b"]
        assert isinstance(answer["a"], int)
        assert answer["b"] in ("yes", "no")


async def test_every_real_schema_compiles_and_every_answer_is_valid(store: GrammarStore) -> None:
    refused = []
    for text in real_schemas():
        grammar = Grammar(GrammarKind.JSON_SCHEMA, text)
        if (error := await store.prepare(grammar)) is not None:
            refused.append(error.message)
            continue
        answer, problem = sample(store, params(grammar, logit_bias=CLOSING, max_tokens=4000))
        assert problem is None
        validate(answer, json.loads(text))
    # Of all 1,415 one is an array that has to equal one of several strings.
    assert set(refused) <= {"Unsatisfiable schema: required property 'metrics' is unsatisfiable"}


async def test_a_greedy_answer_follows_the_best_token_that_is_allowed(store: GrammarStore) -> None:
    grammar = schema({"enum": ["alpha", "beta"]})
    await store.prepare(grammar)
    text, _ = sample(store, params(grammar, temperature=0.0))
    assert text in ('"alpha"', '"beta"')


async def test_a_stop_token_comes_only_where_a_text_is_complete(store: GrammarStore) -> None:
    grammar = Grammar(GrammarKind.LARK, "start: /[0-9]{3,}/")
    await store.prepare(grammar)
    matcher = store.matcher(params(grammar), VOCABULARY)
    (digit,) = TOKENIZER.encode("7", add_special_tokens=False)
    allowed = []
    for _ in range(4):
        allowed.append(not matcher.banned()[END])
        assert not matcher.advance(digit)
    assert allowed == [False, False, False, True]
    assert matcher.banned()[TOKENIZER.vocab_size :].all()  # no token at all


async def test_a_stop_token_that_texts_may_have_ends_one_early(store: GrammarStore) -> None:
    """As a stop string does; a ban would leave no token where nothing else can come."""
    grammar = schema({"enum": ["7777"]})
    await store.prepare(grammar)
    quote, digit = (TOKENIZER.encode(text, add_special_tokens=False)[0] for text in ('"', "7"))
    matcher = store.matcher(params(grammar, stop_token_ids=frozenset({END, digit})), VOCABULARY)
    assert not matcher.banned()[quote]
    assert not matcher.advance(quote)
    assert matcher.banned()[END]
    assert not matcher.banned()[digit]


async def test_a_matcher_is_a_function_of_its_tokens(store: GrammarStore) -> None:
    """A sequence that goes on in another engine is handed the tokens that it has."""
    grammar = schema(PAIR)
    await store.prepare(grammar)
    tokens = TOKENIZER.encode('{"a": 12, "b": "yes"}', add_special_tokens=False)
    walked = store.matcher(params(grammar), VOCABULARY)
    for count, token in enumerate(tokens):
        resumed = store.matcher(params(grammar), VOCABULARY, tokens[:count])
        assert (resumed.banned() == walked.banned()).all()
        assert walked.advance(token) == (count == len(tokens) - 1)
    with pytest.raises(GrammarError):
        store.matcher(params(grammar), VOCABULARY, tokens[1:])


async def test_a_seeded_answer_goes_on_elsewhere_as_if_nothing_had_happened(store: GrammarStore) -> None:
    grammar = schema({"type": "array", "items": {"enum": ["one", "two"]}, "minItems": 12, "maxItems": 12})
    await store.prepare(grammar)
    sampling = params(grammar, frequency_penalty=0.5)
    logits = np.random.default_rng(5).normal(0, 3, (200, VOCABULARY)).astype(np.float32)

    def run(tokens: list[int]) -> list[int]:
        sampler = Sampler(VOCABULARY, store)
        sampler.add(0, [], sampling, tokens)
        while True:
            step = sampler.sample([0], logits[len(tokens)][None].copy())
            tokens = [*tokens, *step.token_ids]
            if step.ended:
                assert step.ended == {0: None}
                return tokens

    whole = run([])
    assert len(json.loads(TOKENIZER.decode(whole))) == 12
    for count in range(1, len(whole), 3):
        assert run(whole[:count]) == whole


async def test_neighbours_without_a_grammar_are_not_touched(store: GrammarStore) -> None:
    grammar = schema(PAIR)
    await store.prepare(grammar)
    logits = np.random.default_rng(1).normal(0, 2, (2, VOCABULARY)).astype(np.float32)
    free = SamplingParams(max_tokens=5, seed=3)
    alone, together = Sampler(VOCABULARY), Sampler(VOCABULARY, store)
    alone.add(0, [], free)
    together.add(0, [], free)
    together.add(1, [], params(grammar))
    for _ in range(5):
        expected = alone.sample([0], logits[:1].copy()).token_ids[0]
        assert together.sample([0, 1], logits.copy()).token_ids[0] == expected


async def test_a_row_that_is_all_nan_fails_its_sequence_alone(store: GrammarStore) -> None:
    grammar = schema(PAIR)
    await store.prepare(grammar)
    sampler = Sampler(VOCABULARY, store)
    sampler.add(0, [], params(grammar))
    step = sampler.sample([0], np.full((1, VOCABULARY), np.nan, dtype=np.float32))
    assert step.broken_rows == [0]
    error = step.ended[0]
    assert error is not None
    assert error.code is ErrorCode.INVALID_GRAMMAR


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"not": {}}, "Unimplemented keys"),
        ({"type": "thing"}, "Invalid type"),
        (UNSATISFIABLE, "Unsatisfiable"),
        ({"$ref": "https://example.com/schema"}, "not present"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ],
)
async def test_what_cannot_be_held_to_is_refused_with_the_reason(store: GrammarStore, value: Any, reason: str) -> None:
    for _ in range(2):  # the second time without a trial
        error = await store.prepare(schema(value))
        assert error is not None
        assert error.code is ErrorCode.INVALID_GRAMMAR
        assert reason in error.message


async def test_an_answer_whose_grammar_is_none_here_may_go_on_elsewhere(store: GrammarStore) -> None:
    error = await store.prepare(schema({"type": "thing"}), was_used=True)
    assert error is not None
    assert error.code is ErrorCode.ENGINE_FAILED


async def test_the_same_grammar_is_tried_once(store: GrammarStore) -> None:
    trials = 0
    verdict = store._trials.verdict

    async def counted(grammar: Grammar, account: str) -> zygote.Verdict:
        nonlocal trials
        trials += 1
        return await verdict(grammar, account)

    store._trials.verdict = counted  # type: ignore[method-assign]
    await asyncio.gather(*(store.prepare(schema(PAIR)) for _ in range(10)))
    assert trials == 1
    assert store.is_ready(schema(PAIR))


async def test_the_process_that_tries_grammars_comes_back(store: GrammarStore) -> None:
    assert await store.prepare(schema({"const": 1})) is None
    process = store._trials._process
    assert process is not None
    process.kill()
    await process.wait()
    assert await store.prepare(schema({"const": 2})) is None


HOSTILE = [
    {"type": "string", "pattern": "^(" + "|".join(f".*{i}.{{{i}}}" for i in range(200)) + ")$"},
    {"type": "string", "pattern": "((a{0,99}){0,99}){0,99}{0,99}"},
    {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {"const": i}}} for i in range(12)]} for j in range(9)]},
    {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 50}}, "$ref": "#/$defs/a"},
    {"enum": [f"{i:x}" * 40 for i in range(4000)]},
    {"type": "array", "items": {"type": "array", "items": {"type": "string"}, "maxItems": 9**9}, "maxItems": 9**9},
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_schema_ends_in_a_refusal_or_in_bounded_work(store: GrammarStore, value: Any) -> None:
    grammar = schema(value)
    if await store.prepare(grammar) is None:
        _, problem = sample(store, params(grammar, max_tokens=5))
        assert problem is None or problem.code is ErrorCode.INVALID_GRAMMAR
    assert await store.prepare(schema(PAIR)) is None


def _spin(_: Grammar) -> int:
    while True:
        pass


def _swell(_: Grammar) -> int:
    return len(bytearray(2 * zygote.MEMORY_LIMIT))


@pytest.mark.parametrize(
    ("work", "limit", "problem"), [(_spin, 0.2, zygote.TOO_LONG), (_swell, 60.0, zygote.TOO_LARGE)]
)
def test_a_trial_that_takes_too_much_is_killed(
    work: Any, limit: float, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts: list[zygote.Verdict] = []
    monkeypatch.setattr(zygote, "TIME_LIMIT", limit)
    monkeypatch.setattr(zygote, "_write", lambda _, verdict: verdicts.append(verdict))
    process = zygote.Zygote(work)
    process._fork(zygote.Trial(5, schema({})))
    (descriptor,) = process._children
    while not verdicts:
        for key, _ in process._selector.select(process._patience()):
            process._finish(key.fd)
        process._kill_late()
    assert (verdicts[0].number, verdicts[0].problem, verdicts[0].is_measured) == (5, problem, True)
    assert descriptor not in process._children
