"""What is done with a request for vectors before it runs, and with its vectors then.

The counterpart of `server.pipeline`: whatever is wrong with a request is said while nothing is held. It runs as a
`Generation` whose one prompt is all of its texts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.steps import TextRow
from engines.types import SamplingParams, Task, TextSpan, VectorInfo
from server import privacy
from server.cache.answering import answering
from server.errors import InvalidRequest, Overloaded, UnsupportedParameter
from server.generation import Generation, Resources
from server.job import Caller, Job, PreparedPrompt
from server.off_loop import off_loop_if
from server.pipeline import DRAIN_RETRY_MS, LONG_TEXT
from server.registry import Deployment
from server.routing import Router, serving
from server.text.answer import AnswerStream
from server.text.content_filter import ContentFilter
from server.text.stream import TextStream
from server.text.tokenizer import ByteTokenizer, Tokenizer
from server.wire.common import ResponseHead, new_id
from server.wire.embeddings import MAX_REQUEST_TOKENS, EmbeddingRequest
from server.wire.prompts import Pieces, Prompt, check_token_prompt
from server.wire.rerank import Comparison, Side


class VectorPipeline:
    """What every request for vectors goes through. One a gateway."""

    def __init__(self, router: Router, content_filter: ContentFilter, resources: Resources) -> None:
        self._router = router
        self._filter = content_filter
        self._resources = resources

    async def embed(self, caller: Caller, body: EmbeddingRequest) -> Generation:
        """A vector for each input. Raises APIError when something is wrong with the request; nothing is held yet."""
        deployment = serving(self._router.resolve(body.model, caller.principal), Task.EMBED)
        _check_dimensions(body.dimensions, vectors_of(deployment))
        size = sum(map(len, body.input))
        rows = await off_loop_if(size > LONG_TEXT, lambda: self._encode(body.input, "input", deployment))
        return self._generation(caller.later(body.priority), deployment, rows, "input", "embeddings", "embd")

    async def compare(self, caller: Caller, model: str, comparison: Comparison, id_prefix: str) -> Generation:
        """A vector for each text of both sides, or for each pair where the model is a cross-encoder; `scores` makes
        numbers of either. Raises APIError as `embed` does."""
        deployment = serving(self._router.resolve(model, caller.principal), Task.EMBED, Task.SCORE)
        sides = (comparison.left, comparison.right)
        size = sum(len(text) for side in sides for text in side.texts)
        encode = self._encode_pairs if deployment.task is Task.SCORE else self._encode_sides
        rows = await off_loop_if(size > LONG_TEXT, lambda: encode(comparison, deployment))
        return self._generation(caller, deployment, rows, comparison.right.param, "rerank", id_prefix)

    # --- tokens

    def _encode(self, prompts: Sequence[Prompt | Pieces], param: str, deployment: Deployment) -> list[TextRow]:
        single = len(prompts) == 1
        return [
            self._row(prompt, param if single else f"{param}.{index}", deployment)
            for index, prompt in enumerate(prompts)
        ]

    def _row(self, prompt: Prompt | Pieces, param: str, deployment: Deployment) -> TextRow:
        tokenizer = deployment.tokenizer
        if isinstance(prompt, str):
            self._check_content(prompt, param)
            (text,) = self._masked([prompt], deployment)
            ids = tokenizer.encode(text, vectors_of(deployment).adds_special_tokens) if text else []
        elif deployment.pii is not None:
            raise privacy.refuse_tokens(param)
        else:
            ids = _tokens(prompt, tokenizer)
            check_token_prompt(ids, deployment.limits.vocab_size, param)
            self._check_content(tokenizer.decode(ids), param)
        return _checked(TextRow(ids, len(ids)), param, deployment)

    def _encode_sides(self, comparison: Comparison, deployment: Deployment) -> list[TextRow]:
        sides = (comparison.left, comparison.right)
        return [self._row(text, side.name(i), deployment) for side in sides for i, text in enumerate(side.texts)]

    def _encode_pairs(self, comparison: Comparison, deployment: Deployment) -> list[TextRow]:
        for side in (comparison.left, comparison.right):
            self._check_side(side)
        pairs = zip(comparison.lefts(), comparison.right.texts, strict=True)
        rows = (deployment.tokenizer.encode_pair(*self._masked(pair, deployment)) for pair in pairs)
        return [_checked(row, comparison.right.name(i), deployment) for i, row in enumerate(rows)]

    def _check_side(self, side: Side) -> None:
        for index, text in enumerate(side.texts):
            if not text:
                raise _empty(side.name(index))
            self._check_content(text, side.name(index))

    def _masked(self, texts: Sequence[str], deployment: Deployment) -> Sequence[str]:
        """As the model is shown texts that it sees together. Others beside them in a request change nothing."""
        if (masker := privacy.masker_of(deployment.pii)) is None:
            return texts
        masked = [masker.text(text) for text in texts]
        self._resources.metrics.observe_masked(masker.counts)
        return masked

    def _check_content(self, text: str, param: str) -> None:
        if self._filter.check(text) is not None:
            raise InvalidRequest("The request was refused by the content filter.", param=param, code="content_filter")

    # --- the job

    def _generation(
        self, caller: Caller, deployment: Deployment, rows: list[TextRow], param: str, feature: str, id_prefix: str
    ) -> Generation:
        if self._resources.is_draining():
            raise Overloaded("The server is shutting down.", code="shutting_down", retry_after_ms=DRAIN_RETRY_MS)
        prompt = _prompt(rows)
        if len(prompt.token_ids) > MAX_REQUEST_TOKENS:
            message = f"The texts have {len(prompt.token_ids)} tokens; a request takes {MAX_REQUEST_TOKENS} in all."
            raise InvalidRequest(message, param=param, code="context_length_exceeded")
        features = caller.features | {feature}
        layers = self._resources.entitlement.layers(caller.principal, deployment.model, deployment.version, features)
        job = Job(
            caller=caller,
            deployment=deployment,
            prompts=[prompt],
            features=features,
            head=ResponseHead(new_id(id_prefix), int(time.time()), deployment.id, deployment.fingerprint),
            layers=layers,
            streamed=False,
            include_usage=True,
        )
        return answering(job, self._resources)


def _tokens(pieces: list[int] | Pieces, tokenizer: Tokenizer) -> list[int]:
    """Strings become tokens where they stand, without special ones."""
    parts = ([piece] if isinstance(piece, int) else tokenizer.encode(piece, False) for piece in pieces)
    return [token for part in parts for token in part]


def vectors_of(deployment: Deployment) -> VectorInfo:
    assert deployment.vectors is not None, "`serving` has asked for its task"
    return deployment.vectors


def _prompt(rows: list[TextRow]) -> PreparedPrompt:
    ids = [token_id for row in rows for token_id in row.token_ids]
    spans = [TextSpan(len(row.token_ids), row.num_first) for row in rows]
    return PreparedPrompt(ids, SamplingParams(max_tokens=0), _no_text, lambda text: 0, texts=spans)


def _no_text() -> AnswerStream:
    """Of a request whose answer has none."""
    return AnswerStream(TextStream(ByteTokenizer().detokenizer()))


def _checked(row: TextRow, param: str, deployment: Deployment) -> TextRow:
    context = deployment.limits.context
    if not row.token_ids:
        raise _empty(param)
    if len(row.token_ids) > context:
        message = f"This model's maximum context length is {context} tokens, but '{param}' has {len(row.token_ids)}."
        raise InvalidRequest(message, param=param, code="context_length_exceeded")
    return row


def _empty(param: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' is empty: expected a text with at least one token.", param=param)


def _check_dimensions(dimensions: int | None, info: VectorInfo) -> None:
    if dimensions is None or dimensions == info.dim:
        return
    if dimensions > info.dim:
        message = f"'dimensions': this model's vectors have {info.dim}, which is less than {dimensions}."
        raise InvalidRequest(message, param="dimensions")
    if not info.truncates:
        message = f"Unsupported parameter: 'dimensions'. Vectors of this model can't be shortened from {info.dim}."
        raise UnsupportedParameter("dimensions", message)
    if info.dimensions and dimensions not in info.dimensions:
        allowed = ", ".join(map(str, info.dimensions))
        raise InvalidRequest(f"'dimensions': expected one of {allowed} for this model.", param="dimensions")


@dataclass(slots=True, frozen=True)
class Shape:
    """How vectors are given: cut to `dimensions` where that is asked for, and then of length 1 again."""

    dimensions: int | None
    normalized: bool

    def of(self, vector: bytes) -> bytes:
        if self.dimensions is None or 4 * self.dimensions >= len(vector):
            return vector
        cut = np.frombuffer(vector, "<f4")[: self.dimensions]
        if self.normalized:
            cut = cut / max(float(np.linalg.norm(cut)), 1e-12)
        return cut.astype("<f4").tobytes()


def scores(vectors: Sequence[bytes], comparison: Comparison, task: Task) -> list[float]:
    """One a text of the right side: the cross-encoder's own number, or the cosine of the two vectors."""
    if task is Task.SCORE:
        return [float(np.frombuffer(vector, "<f4")[0]) for vector in vectors]
    table = np.stack([np.frombuffer(vector, "<f4") for vector in vectors]).astype(np.float64)
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    count = len(comparison.left.texts)
    cosines: list[float] = (table[:count] * table[count:]).sum(axis=1).clip(-1, 1).tolist()
    return cosines
