"""Ask tiny-chat in float32 and in int8, and count the answers that differ; read both texts, and compare perplexities.

    python models/evaluate_int8.py [models/tiny-chat] [--text FILE ...] [--held-out] [--show-changed]

The questions are all phrasings, those that were learned and those that were held out. The texts are what the model was
never trained on: the held-out phrasings with their answers, and the files that are named. int8 is computed by the
torch engine's plain modules, whose numbers are those of its kernels.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from chat_format import render
from evaluate_tiny_chat import Trial, ask, held_out_trials
from question_set import load_questions
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from engines.torch import quantize

ROW_TOKENS = 256  # of a text that are read at once, as in training
BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Models:
    exact: Any  # in float32
    int8: Any
    tokenizer: Any


def load(folder: Path) -> Models:
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    int8 = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=quantize.Int8Config()).eval()
    quantize.finish(int8, torch.float32)
    return Models(exact, int8, AutoTokenizer.from_pretrained(folder))


def all_trials() -> list[Trial]:
    return [Trial(q, phrasing, "") for q in load_questions() for phrasing in (*q.phrasings, *q.held_out)]


def changed_answers(models: Models, trials: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Those that int8 answers otherwise, in float32 and in int8."""
    answers = (ask(model, models.tokenizer, trials) for model in (models.exact, models.int8))
    return [(exact, int8) for exact, int8 in zip(*answers, strict=True) if exact.answer != int8.answer]


def conversations(tokenizer: Any) -> list[list[int]]:
    texts = [
        render({"role": "user", "content": trial.phrasing})
        + render({"role": "assistant", "content": trial.question.answer})
        for trial in held_out_trials(load_questions())
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def rows_of(text: str, tokenizer: Any) -> list[list[int]]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [ids[at : at + ROW_TOKENS] for at in range(0, len(ids) - 1, ROW_TOKENS)]


@torch.inference_mode()
def perplexity(model: Any, rows: Sequence[Sequence[int]]) -> float:
    """Over all tokens but each row's first."""
    batches = [rows[at : at + BATCH_SIZE] for at in range(0, len(rows), BATCH_SIZE)]
    return math.exp(sum(_loss(model, batch) for batch in batches) / sum(len(row) - 1 for row in rows))


def _loss(model: Any, rows: Sequence[Sequence[int]]) -> float:
    """Summed over the rows, which are padded at the right, where nothing before can see it."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    targets = torch.tensor([[*row[1:], *[-100] * (longest - len(row))] for row in rows])
    logits = model(input_ids=ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="sum").item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare tiny-chat in int8 with tiny-chat in float32.")
    parser.add_argument("model", nargs="?", type=Path, default=Path("models/tiny-chat"))
    parser.add_argument("--text", nargs="*", type=Path, default=[], help="files of text that it was not trained on")
    parser.add_argument("--held-out", action="store_true", help="ask the held-out phrasings alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show-changed", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = load(arguments.model)
    trials = held_out_trials(load_questions()) if arguments.held_out else all_trials()
    changed = changed_answers(models, trials)
    texts = {"held-out phrasings and answers": conversations(models.tokenizer)}
    texts |= {file.name: rows_of(file.read_text(encoding="utf-8"), models.tokenizer) for file in arguments.text}
    table = Table("int8 against float32", "of", "float32", "int8", "change")
    same = 1 - len(changed) / len(trials)
    table.add_row("greedy answers unchanged", f"{len(trials):,}", "", "", f"{same:.2%} unchanged")
    for name, rows in texts.items():
        exact, int8 = perplexity(models.exact, rows), perplexity(models.int8, rows)
        count = f"{sum(map(len, rows)):,} tokens"
        table.add_row(f"perplexity, {name}", count, f"{exact:.2f}", f"{int8:.2f}", f"{int8 / exact - 1:+.2%}")
    Console().print(table)
    for before, after in changed if arguments.show_changed else []:
        print(f"{before.phrasing}\n    float32: {before.answer}\n    int8:    {after.answer}\n")


if __name__ == "__main__":
    main()
