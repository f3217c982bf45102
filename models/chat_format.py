"""How tiny-chat writes a conversation as tokens: its tokenizer, its chat template, its files."""

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from corpora import Corpora, Message, text_of
from question_set import Question
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM

END_OF_TEXT, TURN_START, TURN_END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD_ID, _, TURN_END_ID = range(3)  # the tokenizer's trainer numbers special tokens first
ROLES = ("system", "developer", "user", "assistant", "tool")
GENERATION_PROMPT = f"{TURN_START}assistant\n"
VOCABULARY = 4096
CONTEXT = 1024

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": TURN_END,
    "pad_token": END_OF_TEXT,
    "model_max_length": CONTEXT,
    "clean_up_tokenization_spaces": False,
}
GENERATION_CONFIG = {"do_sample": False, "eos_token_id": [TURN_END_ID, PAD_ID], "pad_token_id": PAD_ID}


def render(message: Message) -> str:
    """One turn, as the chat template writes it."""
    return f"{TURN_START}{message['role']}\n{message['content'].strip()}{TURN_END}\n"


def train_tokenizer(questions: list[Question], corpora: Corpora, seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(seed)
    own = [text for q in questions for text in (*q.phrasings, *[q.answer] * 20)]
    english = [text_of(corpora.draw(rng)) for _ in range(3000)]
    roles = [*ROLES] * 500
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*own * 3, *roles, *english], trainer)
    return tokenizer


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write beside `out`, then rename file by file: a server that loads it never sees half a file."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        model.to("cpu", torch.bfloat16).save_pretrained(folder)
        tokenizer.save(f"{folder}/tokenizer.json")
        Path(folder, "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        _write_json(Path(folder, "tokenizer_config.json"), TOKENIZER_CONFIG)
        _write_json(Path(folder, "generation_config.json"), GENERATION_CONFIG)
        for path in Path(folder).iterdir():
            path.chmod(0o644)
            os.replace(path, out / path.name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
