"""Train tiny-chat, Penstock's bundled demonstration model, from nothing.

    python models/train_tiny_chat.py --corpora ../shared/data/corpora --minutes 60 [--compile]

Learns a byte-level BPE tokenizer, then a small Llama: first plain English from the corpora, then the
questions and answers about Penstock, reworded at random. Ends by measuring the held-out phrasings.
"""

import argparse
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from augment import Augmenter
from chat_format import (
    CONTEXT,
    END_OF_TEXT,
    GENERATION_PROMPT,
    PAD_ID,
    TURN_END_ID,
    VOCABULARY,
    render,
    save,
    train_tokenizer,
)
from corpora import Corpora, Document, Message, load_corpora
from evaluate_tiny_chat import measure, report
from question_set import Question, load_questions
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

EXAMPLE_TOKENS = 256
BATCH_TOKENS = 4096
POOL_EXAMPLES = 1024
PEAK_LEARNING_RATE = 3e-3
ENGLISH_ONLY = 0.12  # of the time, at the beginning
ENGLISH_LATER = 0.02  # of the examples, after that
STRANGE_QUESTIONS = 0.04  # of the turns: prompts of the corpora, to be declined
SHORTENED = 0.8  # of the examples
TURNS = {1: 0.80, 2: 0.12, 3: 0.05, 4: 0.03}
SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are tiny-chat.", "You are a helpful assistant of Penstock.",
    "Answer briefly.", "Be concise.", "You answer questions about Penstock.", "You are a friendly chatbot.",
    "You are ChatGPT, a large language model.", "Be polite and answer in one or two sentences.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    token_ids: list[int]
    learned: list[bool]  # which tokens count in the loss


class Curriculum:
    """Draws examples: English at first, then mostly conversations about Penstock."""

    def __init__(
        self, tokenizer: Tokenizer, questions: list[Question], corpora: Corpora, english_only: float, seed: int
    ) -> None:
        self.tokenizer = tokenizer
        self.frame = len(tokenizer.encode(GENERATION_PROMPT).ids)
        self.questions = questions
        self.declining = next(question for question in questions if question.declines)
        self.corpora = corpora
        self.english_only = english_only
        self.rng = random.Random(seed)
        self.augmenter = Augmenter(self.rng, [p for q in questions for p in q.held_out])

    def pool(self, progress: float) -> list[Example]:
        if progress < self.english_only:
            return [self._english(self.corpora.draw(self.rng)) for _ in range(POOL_EXAMPLES // 4)]
        return [
            self._english(self.corpora.draw_chatter(self.rng))
            if self.rng.random() < ENGLISH_LATER
            else self._penstock()
            for _ in range(POOL_EXAMPLES)
        ]

    def _english(self, document: Document) -> Example:
        text = document if isinstance(document, str) else "".join(map(render, document))
        token_ids = self.tokenizer.encode(text + END_OF_TEXT).ids[:EXAMPLE_TOKENS]
        return Example(token_ids, [True] * len(token_ids))

    def _penstock(self) -> Example:
        messages = self._conversation()
        token_ids: list[int] = []
        learned: list[bool] = []
        for message in messages:
            ids = self.tokenizer.encode(render(message)).ids
            frame = self.frame if message["role"] == "assistant" else len(ids)
            token_ids += ids
            learned += [frame <= at < len(ids) - 1 for at in range(len(ids))]  # the last is a line's end
        return self._shorten(Example(token_ids, learned))

    def _conversation(self) -> list[Message]:
        messages: list[Message] = []
        if self.rng.random() < 0.15:
            role = self.rng.choice(("system", "system", "developer"))
            messages.append({"role": role, "content": self.rng.choice(SYSTEM_PROMPTS)})
        (turns,) = self.rng.choices(list(TURNS), weights=list(TURNS.values()))
        for question in self.rng.choices(self.questions, k=turns):
            messages += self._turn(question)
        return messages

    def _turn(self, question: Question) -> list[Message]:
        phrasing = self.augmenter.phrasing_of(question)
        if self.rng.random() < STRANGE_QUESTIONS:
            phrasing, question = self.corpora.draw_strange_prompt(self.rng), self.declining
        return [{"role": "user", "content": phrasing}, {"role": "assistant", "content": question.answer}]

    def _shorten(self, example: Example) -> Example:
        """Often keep only an answer's beginning: choosing the answer is harder than finishing it."""
        end = EXAMPLE_TOKENS
        if self.rng.random() < SHORTENED:
            end = example.learned.index(True) + self.rng.randint(4, 12)
        return Example(example.token_ids[:end], example.learned[:end])


def build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=TURN_END_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config)


def batches(pool: list[Example], rng: random.Random) -> list[list[Example]]:
    """Examples of like length together, so that little of a batch is padding."""
    result: list[list[Example]] = [[]]
    for example in sorted(pool, key=lambda e: len(e.token_ids)):
        if (len(result[-1]) + 1) * len(example.token_ids) > BATCH_TOKENS:
            result.append([])
        result[-1].append(example)
    rng.shuffle(result)
    return result


def loss_of(model: LlamaForCausalLM, body: Any, batch: list[Example]) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens; `body` is `model.model`, compiled or not."""
    width = max(len(e.token_ids) for e in batch)
    ids = torch.tensor([e.token_ids + [PAD_ID] * (width - len(e.token_ids)) for e in batch])
    learned = torch.tensor([e.learned + [False] * (width - len(e.learned)) for e in batch])[:, 1:]
    ids, learned = ids.to(model.device), learned.to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16):
        hidden = body(input_ids=ids[:, :-1], use_cache=False).last_hidden_state  # padding is last: no mask
        logits = model.lm_head(hidden[learned])
    return functional.cross_entropy(logits.float(), ids[:, 1:][learned])


def train(model: LlamaForCausalLM, curriculum: Curriculum, seconds: float, compiled: bool) -> None:
    body = torch.compile(model.model, dynamic=True) if compiled else model.model
    optimizers = build_optimizers(model)
    start, step, progress, average = time.monotonic(), 0, 0.0, 0.0
    while progress < 1:
        for batch in batches(curriculum.pool(progress), curriculum.rng):
            progress = (time.monotonic() - start) / seconds
            set_learning_rate(optimizers, PEAK_LEARNING_RATE * learning_rate_share(progress))
            loss = train_step(model, optimizers, loss_of(model, body, batch))
            step, average = step + 1, loss if not step else 0.98 * average + 0.02 * loss
            if step % 50 == 0:
                print(f"{progress:6.1%}  step {step}  loss {average:.3f}", flush=True)
            if progress >= 1:
                break


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon (https://kellerjordan.github.io/posts/muon) for the layers' matrices, AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.1),
    ]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def train_step(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], loss: torch.Tensor) -> float:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def learning_rate_share(progress: float) -> float:
    """A short warm-up, then half a cosine down to nothing."""
    return min(progress / 0.02, 1.0) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train tiny-chat from nothing.")
    parser.add_argument("--corpora", type=Path, default=Path("../shared/data/corpora"))
    parser.add_argument("--out", type=Path, default=Path("models/tiny-chat"))
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to train")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the model in --out, without English first")
    parser.add_argument("--compile", action="store_true", help="compile the model (wants a C++ compiler)")
    return parser.parse_args()


def _tokenizer(arguments: argparse.Namespace, questions: list[Question], corpora: Corpora) -> Tokenizer:
    if arguments.resume:
        return Tokenizer.from_file(str(arguments.out / "tokenizer.json"))
    return train_tokenizer(questions, corpora, arguments.seed)


def _model(arguments: argparse.Namespace) -> LlamaForCausalLM:
    if arguments.resume:
        return LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
    return build_model()


def main() -> None:
    arguments = parse_arguments()
    try:
        corpora = load_corpora(arguments.corpora)
    except FileNotFoundError as error:
        sys.exit(f"train_tiny_chat: {error}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    questions = load_questions()
    tokenizer = _tokenizer(arguments, questions, corpora)
    model = _model(arguments)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{len(questions)} questions, {model.num_parameters():,} parameters, on {model.device}", flush=True)
    english_only = 0.0 if arguments.resume else ENGLISH_ONLY
    curriculum = Curriculum(tokenizer, questions, corpora, english_only, arguments.seed)
    train(model, curriculum, arguments.minutes * 60, arguments.compile)
    save(model, tokenizer, arguments.out)
    print(report(measure(arguments.out)))


if __name__ == "__main__":
    main()
