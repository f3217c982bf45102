"""The deterministic engine for vectors: each is a fixed function of its text's tokens, of length 1.

A score is the first component of the vector of its pair.
"""

from __future__ import annotations

import hashlib
import time
from array import array

import numpy as np

from engines.base import VectorEngine
from engines.fake import CONTEXT, DIM, MAX_NUM_SEQS, TOKEN_BUDGET, VOCABULARY, read_options
from engines.sentence_files import Vectors, of_length_one
from engines.steps import TextBatch
from engines.types import EngineConfig, EngineInfo, Task, VectorInfo
from engines.vectors import as_bytes


def fake_vector(token_ids: list[int]) -> Vectors:
    """[DIM]: what tests compare with."""
    digest = hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=2 * DIM).digest()
    numbers = np.frombuffer(digest, dtype="<u2").astype(np.float32) - 32768
    vector: Vectors = of_length_one(numbers[None])[0]
    return vector


def fake_vectors(batch: TextBatch, dim: int = DIM) -> list[bytes]:
    return as_bytes(np.stack([fake_vector(row.token_ids)[:dim] for row in batch.rows]))


class FakeVectorEngine(VectorEngine):
    def __init__(self, config: EngineConfig) -> None:
        options = read_options(config.options)
        self._delay = options.delay_ms / 1000
        self._batches_to_failure = options.fail_at_step
        self._dim = DIM if config.task == Task.EMBED else 1
        super().__init__(
            EngineInfo(
                max_model_len=config.max_model_len or CONTEXT,
                max_num_seqs=config.max_num_seqs or MAX_NUM_SEQS,
                vocab_size=options.vocab or VOCABULARY,
                token_budget=options.token_budget or TOKEN_BUDGET,
                description=f"fake vectors, {options.delay_ms:g} ms a batch",
                task=Task(config.task),
                vectors=VectorInfo(self._dim, truncates=config.matryoshka),
            )
        )

    def execute(self, batch: TextBatch) -> list[bytes]:
        if self._delay:
            time.sleep(self._delay)
        self._batches_to_failure -= 1
        if self._batches_to_failure == 0:
            raise RuntimeError("options.fail_at_step")
        return fake_vectors(batch, self._dim)
