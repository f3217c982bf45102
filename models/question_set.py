"""The questions and answers about Penstock that tiny-chat learns, read from `questions/*.toml`."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

QUESTIONS_FOLDER = Path(__file__).resolve().parent / "questions"


@dataclass(frozen=True, slots=True)
class Question:
    """One answer and the ways people ask for it; `held_out` phrasings are only ever measured."""

    topic: str
    answer: str
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]
    small_talk: bool
    declines: bool  # the answer to everything that is about something else


def normalise(text: str) -> str:
    """Fold case, punctuation and spacing, so that two spellings of one phrasing compare equal."""
    return " ".join(re.findall(r"[^\W_]+|[^\w\s.,;:!?'\"…，。？！]", text.casefold().replace("'", "")))


def load_questions(folder: Path = QUESTIONS_FOLDER) -> list[Question]:
    """Read every topic file; raises ValueError where a phrasing belongs to two questions."""
    questions = [question for path in sorted(folder.glob("*.toml")) for question in _read_topic(path)]
    _refuse_duplicates(questions)
    return questions


def _read_topic(path: Path) -> list[Question]:
    topic = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Question(
            topic=path.stem,
            answer=entry["answer"].strip(),
            phrasings=_lines(entry["phrasings"]),
            held_out=_lines(entry["held_out"]),
            small_talk=topic.get("small_talk", False),
            declines=entry.get("declines", False),
        )
        for entry in topic["question"]
    ]


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in block.splitlines() if line.strip())


def _refuse_duplicates(questions: list[Question]) -> None:
    """A held-out phrasing must not be trained on, and no phrasing may have two answers."""
    seen: dict[str, str] = {}
    for question in questions:
        for phrasing in {normalise(p) for p in question.phrasings}:
            _claim(seen, phrasing, f"{question.topic}: {question.answer}")
        for phrasing in question.held_out:
            _claim(seen, normalise(phrasing), f"held out, {question.topic}: {question.answer}")


def _claim(seen: dict[str, str], phrasing: str, owner: str) -> None:
    if phrasing in seen:
        raise ValueError(f"the phrasing {phrasing!r} stands in two places: {seen[phrasing]!r} and {owner!r}")
    seen[phrasing] = owner
