"""Ask tiny-chat the held-out phrasings of its questions and count the right answers.

    python models/evaluate_tiny_chat.py [models/tiny-chat] [--show-wrong]

Right means: the greedy answer equals the expected one up to case and spacing (exact), or shares
at least 90 % of its words with it (lenient, F1 over word counts).
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from question_set import Question, load_questions
from transformers import AutoModelForCausalLM, AutoTokenizer

LENIENT_F1 = 0.9
MAX_ANSWER_TOKENS = 110
BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Trial:
    question: Question
    phrasing: str
    answer: str

    @property
    def exact(self) -> bool:
        return _words(self.answer) == _words(self.question.answer)

    @property
    def lenient(self) -> bool:
        return self.exact or word_f1(self.answer, self.question.answer) >= LENIENT_F1


def word_f1(answer: str, expected: str) -> float:
    """The harmonic mean of precision and recall over word counts."""
    got, wanted = _words(answer), _words(expected)
    shared = (Counter(got) & Counter(wanted)).total()
    return 2 * shared / (len(got) + len(wanted)) if shared else 0.0


def held_out_trials(questions: Sequence[Question]) -> list[Trial]:
    return [Trial(question, phrasing, "") for question in questions for phrasing in question.held_out]


def ask(model: Any, tokenizer: Any, trials: Sequence[Trial]) -> list[Trial]:
    """Answer every trial's phrasing greedily, with a transformers model and tokenizer."""
    order = sorted(trials, key=lambda trial: len(trial.phrasing))
    batches = [order[at : at + BATCH_SIZE] for at in range(0, len(order), BATCH_SIZE)]
    return [answered for batch in batches for answered in _ask_batch(model, tokenizer, batch)]


def _ask_batch(model: Any, tokenizer: Any, trials: Sequence[Trial]) -> list[Trial]:
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": trial.phrasing}], tokenize=False, add_generation_prompt=True
        )
        for trial in trials
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [Trial(t.question, t.phrasing, answer.strip()) for t, answer in zip(trials, answers, strict=True)]


def report(trials: Sequence[Trial]) -> str:
    """A Markdown table of both measures, by topic and in all."""
    rows = ["| topic | held-out phrasings | exact | lenient |", "|---|---|---|---|"]
    for topic in sorted({trial.question.topic for trial in trials}):
        rows.append(_row(topic, [trial for trial in trials if trial.question.topic == topic]))
    return "\n".join([*rows, _row("**all**", trials)])


def _row(name: str, trials: Sequence[Trial]) -> str:
    exact, lenient = (sum(getattr(t, kind) for t in trials) / len(trials) for kind in ("exact", "lenient"))
    return f"| {name} | {len(trials)} | {exact:.1%} | {lenient:.1%} |"


def _words(text: str) -> list[str]:
    return text.casefold().split()


def measure(folder: Path) -> list[Trial]:
    """Ask the model of `folder`, in float32 as the server loads it, every held-out phrasing."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return ask(model, AutoTokenizer.from_pretrained(folder), held_out_trials(load_questions()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure tiny-chat on the held-out phrasings.")
    parser.add_argument("model", nargs="?", type=Path, default=Path("models/tiny-chat"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show-wrong", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trials = measure(arguments.model)
    for trial in trials:
        if arguments.show_wrong and not trial.lenient:
            print(f"[{trial.question.topic}] {trial.phrasing}\n    {trial.answer}\n")
    print(report(trials))


if __name__ == "__main__":
    main()
