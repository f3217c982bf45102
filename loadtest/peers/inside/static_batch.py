"""transformers' own `generate` on whole batches: one starts when the one before has ended. Needs torch, transformers.

    python static_batch.py FOLDER bfloat16|float32

Reads a JSON object a line, answers with one: see `answer`.
"""

import json
import sys
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

FIRST_TOKEN, NUM_TOKENS = 1000, 20_000  # an ordinary part of the vocabulary


class Clock(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing; notes when each step has ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.times.append(perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def mix(model: Any, slots: int, sizes: list[list[int]]) -> list[list[Any]]:
    """In the order given, `slots` at a time, padded on the left to the longest prompt, run to the longest answer."""
    found: list[list[Any]] = []
    for first in range(0, len(sizes), slots):
        part = sizes[first : first + slots]
        longest, clock = max(prompt for prompt, _ in part), Clock()
        ids = (FIRST_TOKEN + torch.arange(len(part) * longest) * 7919 % NUM_TOKENS).view(len(part), longest)
        start = perf_counter()
        mask = torch.tensor([[0] * (longest - prompt) + [1] * prompt for prompt, _ in part])
        generate(model, ids, mask, max(output for _, output in part), clock)
        found += [[start, clock.times[:output]] for _, output in part]
    return found


def generate(model: Any, ids: Any, mask: Any, tokens: int, clock: Clock | None = None) -> Any:
    criteria = StoppingCriteriaList([clock] if clock else [])
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=criteria,
    )


def answer(model: Any, tokenizer: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """`{"mix": [slots, [[prompt, output], ...]]}`: start and times of each. `{"greedy": [text, tokens]}`: the ids of
    the prompt and of what follows. `{"forced": [ids, first]}`: the most likely token behind each, from `first` on."""
    if "mix" in asked:
        return {"requests": mix(model, *asked["mix"])}
    if "forced" in asked:
        ids, first = asked["forced"]
        logits = model(torch.tensor([ids])).logits[0, first:]
        return {"tokens": logits.argmax(-1).tolist()}
    if "greedy" in asked:
        text, tokens = asked["greedy"]
        ids = tokenizer(text, return_tensors="pt").input_ids
        found = generate(model, ids, torch.ones_like(ids), tokens)[0]
        return {"prompt": ids[0].tolist(), "tokens": found[ids.shape[1] :].tolist()}
    return {"system": f"torch {torch.__version__}, {torch.get_num_threads()} threads"}


def main(folder: str, dtype: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(answer(model, tokenizer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
