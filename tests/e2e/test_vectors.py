"""Embeddings and scores of real models, over HTTP, equal a plain forward pass over transformers' own tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.penstock_process import ROOT, UNLIMITED, PenstockProcess

TINY_CHAT = ROOT / "models" / "tiny-chat"
STATIC = ROOT.parent / "shared" / "data" / "models" / "m2v-64d"
TEXTS = [
    "what is a panda",
    "a bear that lives in china",
    "the cat sat on the mat and eats bamboo in the world",
    "hello",
]
WORDS = {word for text in TEXTS for word in text.split()}
CONFIG = f"""
[[models]]
name = "causal"
path = "{TINY_CHAT}"
task = "embed"
pooling = "last"
dtype = "float32"
options = {{ threads = 1 }}

[[models]]
name = "cross"
path = "CROSS"
options = {{ threads = 1 }}
"""


def save_tokenizer(folder: Path) -> None:
    """BERT's, of a few words."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate(names + sorted(WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    specials = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), names, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross")
    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        initializer_range=0.3,
        num_labels=1,
    )
    transformers.AutoModelForSequenceClassification.from_config(config).float().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def server(cross_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    config = CONFIG.replace("CROSS", str(cross_encoder)) + UNLIMITED
    if STATIC.is_dir():
        config += f'\n[[models]]\nname = "static"\npath = "{STATIC}"\n'
    with PenstockProcess(tmp_path_factory.mktemp("vectors"), config) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(server: PenstockProcess) -> openai.OpenAI:
    return server.sdk()


@torch.inference_mode()
def test_a_causal_model_s_last_tokens(sdk: openai.OpenAI) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_CHAT)
    model = transformers.AutoModel.from_pretrained(TINY_CHAT, dtype=torch.float32).eval()
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS]
    states = torch.stack([model(input_ids=row).last_hidden_state[0, -1] for row in ids])
    expected = torch.nn.functional.normalize(states).numpy()

    together = sdk.embeddings.create(model="causal", input=TEXTS)
    np.testing.assert_allclose([item.embedding for item in together.data], expected, atol=2e-5)
    assert together.usage.prompt_tokens == sum(row.shape[1] for row in ids)
    alone = [sdk.embeddings.create(model="causal", input=text, encoding_format="float") for text in TEXTS]
    np.testing.assert_allclose([made.data[0].embedding for made in alone], expected, atol=2e-5)


def test_a_text_that_is_too_long_is_named(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model="causal", input=["hello", [5] * 1025])  # type: ignore[list-item]
    assert caught.value.param == "input.1"
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model="causal", input=[[5], [5] * 1025])
    assert (caught.value.param, caught.value.code) == ("input.1", "context_length_exceeded")
    assert "maximum context length is 1024 tokens, but 'input.1' has 1025" in caught.value.message


@torch.inference_mode()
def test_a_cross_encoder(server: PenstockProcess, cross_encoder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(cross_encoder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    pairs = [tokenizer(TEXTS[0], text, return_tensors="pt", return_token_type_ids=True) for text in TEXTS[1:]]
    assert all(pair["token_type_ids"].any() for pair in pairs)
    expected = [float(torch.sigmoid(model(**pair).logits[0, 0])) for pair in pairs]
    with server.http() as client:
        score = client.post("/v1/score", json={"model": "cross", "text_1": TEXTS[0], "text_2": TEXTS[1:]}).json()
        rerank = client.post("/v1/rerank", json={"model": "cross", "query": TEXTS[0], "documents": TEXTS[1:]}).json()
    np.testing.assert_allclose([item["score"] for item in score["data"]], expected, atol=1e-5)
    assert score["usage"]["prompt_tokens"] == sum(pair["input_ids"].shape[1] for pair in pairs)
    order = sorted(range(3), key=lambda i: -expected[i])
    assert [result["index"] for result in rerank["results"]] == order


def test_static_embeddings(sdk: openai.OpenAI) -> None:
    if not STATIC.is_dir():
        pytest.skip("needs ../shared/data (models), which this checkout lacks")
    from safetensors.numpy import load_file

    tensors = load_file(STATIC / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(STATIC / "tokenizer.json"))
    expected = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        mean = (tensors["embeddings"][tensors["mapping"][ids]] * tensors["weights"][ids, None]).mean(axis=0)
        expected.append(mean / np.linalg.norm(mean))
    whole = [item.embedding for item in sdk.embeddings.create(model="static", input=TEXTS).data]
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    short = [item.embedding for item in sdk.embeddings.create(model="static", input=TEXTS, dimensions=32).data]
    cut = np.array(expected)[:, :32]
    np.testing.assert_allclose(short, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-6)
