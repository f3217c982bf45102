"""A random model in Qwen3's form, so that speeds can be compared where no weights are at hand.

Speed does not depend on what weights say, but on their shapes. Two things are made sure of all the same: greedy
output wanders over the vocabulary, since layers outweigh the embedding of the last token; and it is plain words
alone, since all other rows of the (tied) embedding are too small to win. So no server ends early, nor holds back
half a character, and every one generates exactly max_tokens.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from struct import pack

import numpy as np
import numpy.typing as npt

from loadtest.records import BenchError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
EMBEDDING_STD, LAYER_GAIN, SELDOM = 0.02, 1.0, 0.01
SPACE = "Ġ"  # a leading space, as byte-level vocabularies write it
BF16 = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Shape:
    """Qwen3-0.6B's. Names as in its config.json."""

    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151936
    max_position_embeddings: int = 40960
    bos_token_id: int = 151643
    eos_token_id: int = 151645


SHAPE = Shape()


def make(folder: Path, tokenizer: Path, shape: Shape = SHAPE, seed: int = 0) -> None:
    """A folder that transformers loads, with bfloat16 weights; complete once it has a config.json.

    Raises BenchError: no tokenizer, or one of more tokens than the shape has rows.
    """
    wins = _plain_words(tokenizer, shape.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    write_safetensors(folder / "model.safetensors", _shapes(shape), _weights(shape, wins, seed))
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2) + "\n", encoding="utf-8")


def _plain_words(tokenizer: Path, rows: int) -> npt.NDArray[np.bool_]:
    """Which tokens may be generated: ASCII letters, perhaps behind a space."""
    missing = [name for name in TOKENIZER_FILES if not (tokenizer / name).is_file()]
    if missing:
        raise BenchError(f"{tokenizer} has no {' and no '.join(missing)}: name a folder with Qwen3's tokenizer")
    document = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = document["model"]["vocab"]
    if max(vocabulary.values()) >= rows:
        raise BenchError(f"{tokenizer}: more tokens than the model's {rows} rows")
    wins = np.zeros(rows, dtype=np.bool_)
    for text, token in vocabulary.items():
        word = text.removeprefix(SPACE)
        wins[token] = word.isascii() and word.isalpha()
    return wins


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **asdict(shape),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def _shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """In the order in which they are written. Of a matrix: outputs, inputs."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, values = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for index in range(shape.num_hidden_layers):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (values, hidden),
            "self_attn.v_proj": (values, hidden),
            "self_attn.q_norm": (shape.head_dim,),
            "self_attn.k_norm": (shape.head_dim,),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"model.layers.{index}.{name}.weight": size for name, size in layer.items()}
    return shapes | {"model.norm.weight": (hidden,)}


def _weights(shape: Shape, wins: npt.NDArray[np.bool_], seed: int) -> Iterator[BF16]:
    rng = np.random.default_rng(seed)
    for name, size in _shapes(shape).items():
        if len(size) == 1:
            yield to_bfloat16(np.ones(size, dtype=np.float32))
            continue
        weights = rng.standard_normal(size, dtype=np.float32)
        if "embed_tokens" in name:
            weights *= np.where(wins, EMBEDDING_STD, EMBEDDING_STD * SELDOM).astype(np.float32)[:, None]
        else:
            weights *= np.float32(LAYER_GAIN * size[1] ** -0.5)  # as large behind it as before it
        yield to_bfloat16(weights)


def to_bfloat16(values: npt.NDArray[np.float32]) -> BF16:
    """The bits, rounded to nearest, ties to even. Finite values only."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterator[BF16]) -> None:
    """One tensor in memory at a time, in the order of `shapes`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in shapes.items():
        start, end = end, end + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.tobytes())
