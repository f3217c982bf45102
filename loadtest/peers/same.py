"""Is it the same model? llama.cpp's tokens of a few prompts, and what it says next, against transformers' own."""

from loadtest.peers.processes import Process
from loadtest.records import BenchError

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a small house by the sea, and in it lived",
    "x = [1, 2,",
)
TOKENS = 12
LEAST = 0.75  # of its tokens; now and then two are as likely as each other, but for rounding


def agreement(llama: Process, transformers: Process) -> float:
    """The share of llama.cpp's greedy tokens that are transformers' own behind the same tokens. Raises BenchError
    where a prompt has other tokens, or where the share is too small for one model."""
    same = 0
    for text in PROMPTS:
        said = llama.ask({"greedy": [text, TOKENS]})
        if said["prompt"] != transformers.ask({"greedy": [text, 1]})["prompt"]:
            raise BenchError(f"llama.cpp and transformers read {text!r} as different tokens")
        ids = said["prompt"] + said["tokens"][:-1]
        expected = transformers.ask({"forced": [ids, len(said["prompt"]) - 1]})["tokens"]
        same += sum(a == b for a, b in zip(said["tokens"], expected, strict=True))
    share = same / (TOKENS * len(PROMPTS))
    if share < LEAST:
        raise BenchError(f"llama.cpp and transformers agree on {share:.0%} of the tokens: not the same model")
    return share
