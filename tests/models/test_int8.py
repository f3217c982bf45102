"""What int8 promises of the bundled model, on a sample: `models/evaluate_int8.py` asks for all of it."""

import random
from pathlib import Path

import pytest
from evaluate_int8 import Models, changed_answers, conversations, load, perplexity, rows_of
from evaluate_tiny_chat import held_out_trials
from question_set import load_questions

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 100


@pytest.fixture(scope="module")
def models() -> Models:
    return load(ROOT / "models" / "tiny-chat")


def test_at_least_99_of_100_answers_are_unchanged(models: Models) -> None:
    trials = random.Random(8).sample(held_out_trials(load_questions()), SAMPLE)
    assert len(changed_answers(models, trials)) <= SAMPLE // 100


def test_perplexity_grows_by_at_most_one_percent(models: Models) -> None:
    for rows in (
        conversations(models.tokenizer)[:120],
        rows_of((ROOT / "LICENSE").read_text()[:6000], models.tokenizer),
    ):
        exact, int8 = perplexity(models.exact, rows), perplexity(models.int8, rows)
        assert int8 != exact
        assert int8 / exact - 1 <= 0.01
