"""Small models for a real Triton that speak the field's conventions. Their answers are the deterministic engine's.

What a convention declares is written out here as its backend's own config.pbtxt has it; `model.py` is what runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_SCALARS = {"FP32": ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"), "UINT64": ("seed",)}
_COUNTS = {"BOOL": ("return_num_input_tokens", "return_num_output_tokens")}

# Names of inputs by type. Those with a ! are required, all others optional.
_INPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm": {
        "STRING": ("!text_input", "sampling_parameters"),
        "BOOL": ("stream", "exclude_input_in_output", "return_finish_reason", *_COUNTS["BOOL"]),
    },
    "ensemble": {
        "STRING": ("!text_input", "stop_words"),
        "INT32": ("!max_tokens", "end_id", "top_k", "min_tokens"),
        "FP32": ("top_p", *_SCALARS["FP32"]),
        "UINT64": _SCALARS["UINT64"],
        "BOOL": ("stream", "exclude_input_in_output", *_COUNTS["BOOL"]),
    },
    "tokens": {
        "INT32": ("!input_ids", "!input_lengths", "!request_output_len", "end_id", "runtime_top_k", "min_tokens"),
        "FP32": ("runtime_top_p", *_SCALARS["FP32"]),
        "UINT64": _SCALARS["UINT64"],
        "BOOL": ("streaming",),
    },
    "llmapi": {
        "STRING": ("!text_input", "sampling_param_stop"),
        "INT32": ("sampling_param_max_tokens", "sampling_param_top_k"),
        "FP32": tuple(
            f"sampling_param_{name}" for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")
        ),
        "UINT64": ("sampling_param_seed",),
        "BOOL": ("streaming", "sampling_param_exclude_input_from_output", "return_finish_reason"),
    },
}
_OUTPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm": {"STRING": ("text_output", "finish_reason"), "UINT32": ("num_input_tokens", "num_output_tokens")},
    "ensemble": {"STRING": ("text_output",), "INT32": ("num_input_tokens", "num_output_tokens")},
    "tokens": {"INT32": ("output_ids", "sequence_length")},
    "llmapi": {"STRING": ("text_output", "finish_reason")},
}
CONVENTIONS = tuple(_INPUTS)
_LONG = {"input_ids": "[ -1 ]", "output_ids": "[ -1, -1 ]", "stop_words": "[ -1 ]", "sampling_param_stop": "[ -1 ]"}


@dataclass(frozen=True)
class TritonModel:
    """`leave_out` and `types` change what it declares. Without `decoupled` it answers whole batches, one by one."""

    name: str
    convention: str
    versions: tuple[int, ...] = (1,)
    delay_ms: float = 0  # the time that a token takes
    decoupled: bool = True
    max_batch_size: int = 0
    queue_size: int = 0  # requests that may wait for a batch; 0: any number
    queue_delay_us: int = 2000  # how long a batch waits to be full
    leave_out: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[str, ...] = ()  # an ensemble of this model, which does all the work: it has no process of its own

    def write(self, repository: Path) -> None:
        folder = repository / self.name
        for version in self.versions:
            (folder / str(version)).mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(__file__).with_name("model.py"), folder / str(version) / "model.py")
        (folder / "config.pbtxt").write_text(self._config(), encoding="utf-8")

    def _ensemble(self) -> list[str]:
        """Every input and output of the step by its own name."""
        (step,) = self.steps
        maps = [
            f'{side}_map {{ key: "{name}" value: "{name}" }}'
            for side, tensors in (("input", _INPUTS), ("output", _OUTPUTS))
            for names in tensors[self.convention].values()
            for name in (marked.removeprefix("!") for marked in names)
        ]
        return [f'ensemble_scheduling {{ step [ {{ model_name: "{step}" model_version: -1 {" ".join(maps)} }} ] }}']

    def _config(self) -> str:
        parameters = {"convention": self.convention, "delay_ms": str(self.delay_ms), **self.options}
        lines = [
            f'name: "{self.name}"',
            'platform: "ensemble"' if self.steps else 'backend: "python"',
            f"max_batch_size: {self.max_batch_size}",
            "" if self.steps else f"model_transaction_policy {{ decoupled: {str(self.decoupled).lower()} }}",
            "version_policy { all { } }",
            *(self._ensemble() if self.steps else ["instance_group [ { count: 1 kind: KIND_CPU } ]"]),
            *(self._tensor("input", name, kind) for kind, names in _INPUTS[self.convention].items() for name in names),
            *(
                self._tensor("output", name, kind)
                for kind, names in _OUTPUTS[self.convention].items()
                for name in names
            ),
            *(f'parameters {{ key: "{k}" value: {{ string_value: "{v}" }} }}' for k, v in parameters.items()),
        ]
        if not self.decoupled:
            policy = f"default_queue_policy {{ max_queue_size: {self.queue_size} }}"
            lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {self.queue_delay_us} {policy} }}")
        return "\n".join(filter(None, lines)) + "\n"

    def _tensor(self, side: str, marked: str, kind: str) -> str:
        name = marked.removeprefix("!")
        if name in self.leave_out:
            return ""
        optional = " optional: true" if side == "input" and name == marked else ""
        kind = self.types.get(name, kind)
        return f'{side} [ {{ name: "{name}" data_type: TYPE_{kind} dims: {_LONG.get(name, "[ 1 ]")}{optional} }} ]'
