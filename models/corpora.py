"""The public dialogues and stories that teach tiny-chat plain English before it learns about Penstock."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = dict[str, str]
Document = list[Message] | str  # a conversation, or a passage of prose

# How often a document of each corpus is drawn.
DIALOGUES = {
    "self_dialogue": 0.55,
    "taskmaster4_coffee": 0.07,
    "oasst_en_100": 0.1,
    "self_instruct_seeds": 0.12,
    "tinyllm_dialogue_unique": 0.04,
}
STORIES = {"grimms_fairy_tales": 0.09, "alice": 0.03}
PASSAGE_CHARACTERS = 500
CHATTER = ("self_dialogue", "grimms_fairy_tales", "alice")
# Prompts about everything under the sun: what a model that only knows Penstock has to decline.
STRANGE_PROMPTS = (
    "self_instruct_seeds",
    "oasst_en_100",
    "gsm8k_train",
    "mtbench_vicuna_prompts",
    "awesome_prompts_cc0",
)
STRANGE_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Corpora:
    documents: dict[str, list[Document]]
    strange_prompts: list[list[str]]

    def draw(self, rng: random.Random) -> Document:
        return self._draw(rng, {**DIALOGUES, **STORIES})

    def draw_chatter(self, rng: random.Random) -> Document:
        """A document whose author gives no orders, and so teaches no answers that contradict our own."""
        return self._draw(rng, {name: ({**DIALOGUES, **STORIES})[name] for name in CHATTER})

    def draw_strange_prompt(self, rng: random.Random) -> str:
        return rng.choice(rng.choice(self.strange_prompts))

    def _draw(self, rng: random.Random, weights: dict[str, float]) -> Document:
        name = rng.choices(list(weights), weights=list(weights.values()))[0]
        return rng.choice(self.documents[name])


def load_corpora(folder: Path) -> Corpora:
    """Raises FileNotFoundError naming the folder or file that is missing."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no corpora at {folder}: say where they are with --corpora DIR")
    documents: dict[str, list[Document]] = {name: _dialogues(folder / f"{name}.jsonl") for name in DIALOGUES}
    documents.update({name: _passages(folder / f"{name}.txt") for name in STORIES})
    return Corpora(documents, [_prompts(folder / f"{name}.jsonl") for name in STRANGE_PROMPTS])


def text_of(document: Document) -> str:
    return document if isinstance(document, str) else "\n".join(m["content"] for m in document)


def _dialogues(path: Path) -> list[Document]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line in lines]


def _passages(path: Path) -> list[Document]:
    text = " ".join(path.read_text(encoding="utf-8").split())
    return [text[at : at + PASSAGE_CHARACTERS] for at in range(0, len(text), PASSAGE_CHARACTERS)]


def _prompts(path: Path) -> list[str]:
    """The short first prompts of a file, whose lines have one of three forms."""
    with path.open(encoding="utf-8") as lines:
        prompts = [_first_prompt(json.loads(line)) for line in lines]
    return [prompt for prompt in prompts if len(prompt) <= STRANGE_CHARACTERS]


def _first_prompt(entry: dict[str, Any]) -> str:
    if "messages" in entry:
        return entry["messages"][0]["content"]
    return entry["turns"][0] if "turns" in entry else entry["prompt"]
