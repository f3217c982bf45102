"""The conventions in which models on Triton take prompts and sampling parameters, and give answers.

Which one a model speaks is read off its tensors. A parameter is carried where the model has a tensor for it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from engines.base import EngineError
from engines.triton.model import TritonModel
from engines.triton.readers import Reader, TextReader, TokenReader
from engines.triton.tensors import Kind, Value
from engines.types import Continuation, GenerationRequest, SamplingParams

Inputs = dict[str, list[Value]]
Tensors = Mapping[str, Kind]
NEVER = -1  # as end_id: nothing ends the answer early
GREEDY = {"temperature": 1.0, "top_p": 1.0, "top_k": 1}  # temperature 0 means no such thing to every backend


class Convention(ABC):
    """How one model is spoken to. Raises EngineError for a model without the tensors that it needs."""

    required: ClassVar[Tensors]
    answers: ClassVar[Tensors]
    takes_text: ClassVar[bool] = True
    continuation: ClassVar[Continuation] = Continuation.NONE
    sampling: frozenset[str]  # the fields of SamplingParams that it carries

    def __init__(self, model: TritonModel) -> None:
        model.check(self.required, self.answers)
        self.model = model

    @classmethod
    @abstractmethod
    def speaks(cls, names: set[str]) -> bool:
        """Whether a model with these inputs is of this convention."""

    @abstractmethod
    def inputs(self, request: GenerationRequest, padded_len: int) -> Inputs:
        """Tensors' values, flattened, by name."""

    @abstractmethod
    def reader(self, request: GenerationRequest) -> Reader: ...

    def _flags(self, *names: str, value: bool = True) -> Inputs:
        """Of these inputs, those that the model has."""
        return {name: [value] for name in names if self.model.has(name, Kind.FLAG)}

    def _text_reader(self, request: GenerationRequest, excluding: str, *, is_cumulative: bool) -> Reader:
        """`excluding`: the flag that keeps the prompt out of the answer. Only whole answers ever have it."""
        may_repeat = not self.model.decoupled and excluding not in self.model.inputs
        return TextReader(request, is_cumulative=is_cumulative, prompt=request.prompt_text if may_repeat else "")


class VLLM(Convention):
    """https://github.com/triton-inference-server/vllm_backend"""

    required: ClassVar[Tensors] = {"text_input": Kind.TEXT, "sampling_parameters": Kind.TEXT}
    answers: ClassVar[Tensors] = {"text_output": Kind.TEXT}
    # The keys of logit_bias are no strings, as JSON's are; logprobs come in no tensor of its answers.
    sampling = frozenset(SamplingParams.__dataclass_fields__) - {"logit_bias", "logprobs", "prompt_logprobs"}

    @classmethod
    def speaks(cls, names: set[str]) -> bool:
        return "sampling_parameters" in names

    def inputs(self, request: GenerationRequest, padded_len: int) -> Inputs:
        flags = ("exclude_input_in_output", "return_finish_reason", "return_num_input_tokens")
        return {
            "text_input": [request.prompt_text.encode()],
            "sampling_parameters": [json.dumps(_json_parameters(request.sampling)).encode()],
            **self._flags("stream", value=self.model.decoupled),
            **self._flags(*flags, "return_num_output_tokens"),
        }

    def reader(self, request: GenerationRequest) -> Reader:
        return self._text_reader(request, "exclude_input_in_output", is_cumulative=False)


def _json_parameters(sampling: SamplingParams) -> dict[str, object]:
    """By vLLM's names, which are ours. What is at its neutral value is left out: older versions refuse some of it."""
    changed = {name: getattr(sampling, name) for name in _NEUTRAL if getattr(sampling, name) != _NEUTRAL[name]}
    stops = {"stop_token_ids": sorted(sampling.stop_token_ids)} if sampling.stop_token_ids else {}
    return {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, **changed, **stops}


_NEUTRAL: dict[str, float | bool | None] = {
    "min_tokens": 0,
    "ignore_eos": False,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "seed": None,
}
_KINDS = {"min_tokens": Kind.INTEGER, "top_k": Kind.INTEGER, "seed": Kind.INTEGER, "ignore_eos": Kind.INTEGER}


class TensorParameters(Convention):
    """A tensor for every parameter: TensorRT-LLM's manner. `parameters`: the tensors that a field goes by."""

    parameters: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, model: TritonModel) -> None:
        super().__init__(model)
        self._tensors = {
            field: name
            for field, names in self.parameters.items()
            for name in names
            if model.has(name, _KINDS.get(field, Kind.NUMBER))
        }
        self.sampling = frozenset(self._tensors) | {"max_tokens"}

    def _parameters(self, sampling: SamplingParams) -> Inputs:
        """The three that choose how to sample always go along: what a backend does without them differs."""
        values: dict[str, float | bool | None]
        values = {name: getattr(sampling, name) for name in _NEUTRAL if getattr(sampling, name) != _NEUTRAL[name]}
        chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        values |= GREEDY if sampling.temperature == 0 else chosen
        if sampling.ignore_eos:
            values["ignore_eos"] = NEVER
        if sampling.seed is not None and "seed" in self._tensors:
            values["seed"] = self.model.inputs[self._tensors["seed"]].fit(sampling.seed)
        return {self._tensors[f]: [v] for f, v in values.items() if v is not None and f in self._tensors}


class TensorRTText(TensorParameters):
    """TensorRT-LLM's `ensemble` and `tensorrt_llm_bls`: text in, text out."""

    required: ClassVar[Tensors] = {"text_input": Kind.TEXT, "max_tokens": Kind.INTEGER}
    answers: ClassVar[Tensors] = {"text_output": Kind.TEXT}
    parameters: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **{name: (name,) for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")},
        **{name: (name,) for name in ("presence_penalty", "frequency_penalty")},
        "min_tokens": ("min_tokens", "min_length"),
        "ignore_eos": ("end_id",),
    }

    @classmethod
    def speaks(cls, names: set[str]) -> bool:
        return "text_input" in names

    def inputs(self, request: GenerationRequest, padded_len: int) -> Inputs:
        return {
            "text_input": [request.prompt_text.encode()],
            "max_tokens": [request.sampling.max_tokens],
            **self._flags("stream", value=self.model.decoupled),
            **self._flags("exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens"),
            **self._parameters(request.sampling),
        }

    def reader(self, request: GenerationRequest) -> Reader:
        accumulates = self.model.parameters.get("accumulate_tokens", "").lower() in ("1", "true")
        return self._text_reader(request, "exclude_input_in_output", is_cumulative=accumulates)


class TensorRTTokens(TensorParameters):
    """TensorRT-LLM's `tensorrt_llm`: token ids in, token ids out."""

    required: ClassVar[Tensors] = {
        "input_ids": Kind.INTEGER,
        "input_lengths": Kind.INTEGER,
        "request_output_len": Kind.INTEGER,
    }
    answers: ClassVar[Tensors] = {"output_ids": Kind.INTEGER}
    takes_text = False
    continuation = Continuation.GREEDY
    parameters: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **{name: (name,) for name in ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty")},
        "top_p": ("runtime_top_p",),
        "top_k": ("runtime_top_k",),
        "min_tokens": ("min_tokens", "min_length"),
        "seed": ("seed", "random_seed"),
    }

    def __init__(self, model: TritonModel) -> None:
        super().__init__(model)
        self.sampling |= {"ignore_eos", "stop_token_ids"}  # the reader knows them

    @classmethod
    def speaks(cls, names: set[str]) -> bool:
        return "input_ids" in names or "request_output_len" in names

    def inputs(self, request: GenerationRequest, padded_len: int) -> Inputs:
        prompt = request.prompt_token_ids
        stops = request.sampling.stop_token_ids
        # Where a batch needs one shape, what lies behind `input_lengths` is padding.
        padding = [0] * (padded_len - len(prompt)) if self.model.batch_size else []
        end: Inputs = {"end_id": [min(stops, default=NEVER)]} if self.model.has("end_id", Kind.INTEGER) else {}
        return {
            "input_ids": [*prompt, *padding],
            "input_lengths": [len(prompt)],
            "request_output_len": [request.sampling.max_tokens],
            **end,
            **self._flags("streaming", value=self.model.decoupled),
            **self._flags("exclude_input_in_output"),
            **self._parameters(request.sampling),
        }

    def reader(self, request: GenerationRequest) -> Reader:
        may_repeat = not self.model.decoupled and "exclude_input_in_output" not in self.model.inputs
        return TokenReader(request, may_repeat_prompt=may_repeat)


class TensorRTLLMAPI(TensorParameters):
    """TensorRT-LLM's LLM API: text in, the text so far out."""

    required: ClassVar[Tensors] = {"text_input": Kind.TEXT, "sampling_param_max_tokens": Kind.INTEGER}
    answers: ClassVar[Tensors] = {"text_output": Kind.TEXT}
    parameters: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (f"sampling_param_{name}",)
        for name in ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed")
    }

    @classmethod
    def speaks(cls, names: set[str]) -> bool:
        return any(name.startswith("sampling_param_") for name in names)

    def inputs(self, request: GenerationRequest, padded_len: int) -> Inputs:
        return {
            "text_input": [request.prompt_text.encode()],
            "sampling_param_max_tokens": [request.sampling.max_tokens],
            **self._flags("streaming", value=self.model.decoupled),
            **self._flags("sampling_param_exclude_input_from_output", "return_finish_reason"),
            **self._parameters(request.sampling),
        }

    def reader(self, request: GenerationRequest) -> Reader:
        return self._text_reader(request, "sampling_param_exclude_input_from_output", is_cumulative=True)


CONVENTIONS: tuple[type[Convention], ...] = (VLLM, TensorRTLLMAPI, TensorRTTokens, TensorRTText)  # the last is broadest


def recognise(model: TritonModel) -> Convention:
    """Raises EngineError: none that we know, or a tensor is missing or of another type."""
    for convention in CONVENTIONS:
        if convention.speaks(set(model.inputs)):
            return convention(model)
    inputs = ", ".join(sorted(model.inputs))
    raise EngineError(
        f"{model.where}: expected a language model with an input text_input or input_ids; it has {inputs}"
    )
