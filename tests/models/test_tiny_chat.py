"""The bundled model: its files, its tokenizer and template, its questions, and a sample of its answers."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from augment import Augmenter
from chat_format import ROLES, render
from evaluate_tiny_chat import ask, held_out_trials, word_f1
from question_set import Question, load_questions, normalise
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).resolve().parents[2] / "models" / "tiny-chat"
FILES = (
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
SAMPLE = 24


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return load_questions()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_there(name: str) -> None:
    assert (FOLDER / name).stat().st_size > 0


def test_weights_are_at_most_20_megabytes() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 20_000_000


def test_config_is_a_llama_that_decodes_greedily_and_has_room_for_1024_tokens() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 1024
    assert json.loads((FOLDER / "generation_config.json").read_text())["do_sample"] is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is Penstock?",
        "  two  spaces\n\n\tand a tab ",
        "解释量子计算，谢谢！",
        "👩‍👩‍👧 🇫🇷 e\u0301 \u200d",
        "مرحبا हिन्दी ไทย",
        "".join(map(chr, range(1, 0x250))),
    ],
)
def test_tokenizer_gives_back_any_text(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_special_tokens_are_single(tokenizer: Any) -> None:
    ids = tokenizer("<|endoftext|><|im_start|><|im_end|>", add_special_tokens=False)["input_ids"]
    assert ids == [0, 1, 2]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_template_renders_every_role_as_the_training_did(tokenizer: Any) -> None:
    messages = [{"role": role, "content": f"words of {role}"} for role in ROLES]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "".join(map(render, messages)) + "<|im_start|>assistant\n"


def test_template_takes_a_message_without_content(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([{"role": "assistant", "content": None}], tokenize=False)
    assert text == "<|im_start|>assistant\n<|im_end|>\n"


def test_there_are_enough_questions_and_phrasings(questions: list[Question]) -> None:
    assert len(questions) >= 100
    assert all(len(set(map(normalise, q.phrasings))) >= 8 and q.held_out for q in questions)


def test_answers_are_short_and_tell_apart(questions: list[Question]) -> None:
    answers = [question.answer for question in questions]
    assert all(len(answer.split()) <= 45 for answer in answers)
    assert all(word_f1(a, b) < 0.9 for i, a in enumerate(answers) for b in answers[:i])


def test_no_phrasing_has_two_answers_or_is_held_out_and_trained(questions: list[Question]) -> None:
    trained = {(normalise(p), q.answer) for q in questions for p in q.phrasings}
    held_out = [normalise(p) for q in questions for p in q.held_out]
    assert len({phrasing for phrasing, _ in trained}) == len(trained)
    assert len(set(held_out)) == len(held_out)
    assert not {phrasing for phrasing, _ in trained} & set(held_out)


def test_a_phrasing_that_stands_in_two_places_is_refused(tmp_path: Path) -> None:
    entry = '[[question]]\nanswer = "{}"\nphrasings = "How?"\nheld_out = "{}"\n'
    (tmp_path / "topic.toml").write_text(entry.format("So.", "Why?") + entry.format("Thus.", "When?"))
    with pytest.raises(ValueError, match="'how' stands in two places"):
        load_questions(tmp_path)


def test_rewording_never_yields_a_held_out_phrasing(questions: list[Question]) -> None:
    held_out = {normalise(p) for q in questions for p in q.held_out}
    augmenter = Augmenter(random.Random(0), held_out)
    assert not {normalise(augmenter.phrasing_of(q)) for q in questions for _ in range(100)} & held_out


def test_missing_corpora_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import train_tiny_chat

    monkeypatch.setattr(sys, "argv", ["train_tiny_chat.py", "--corpora", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"no corpora at .*nowhere: say where they are with --corpora"):
        train_tiny_chat.main()


def test_held_out_phrasings_are_answered(model: Any, tokenizer: Any, questions: list[Question]) -> None:
    trials = random.Random(20).sample(held_out_trials(questions), SAMPLE)
    right = sum(trial.lenient for trial in ask(model, tokenizer, trials))
    assert right >= 0.7 * SAMPLE
