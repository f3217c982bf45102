"""The deterministic engine for vectors: each is a fixed function of its text's tokens, of length 1.

A score is the first component of the vector of its pair.
"""

from __future__ import annotations

import time

import numpy as np

from engines.base import VectorEngine
from engines.fake import CONTEXT, DIM, MAX_NUM_SEQS, TOKEN_BUDGET, VOCABULARY, fake_vector, read_options
from engines.steps import TextBatch
from engines.types import EngineConfig, EngineInfo, Task, VectorInfo
from engines.vectors import as_bytes


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
        return as_bytes(np.stack([fake_vector(row.token_ids)[: self._dim] for row in batch.rows]))
