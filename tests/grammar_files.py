"""What tests of grammars share: vocabularies as files, real function schemas, the judge of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server import schemas
from server.text.tokenizer import HFTokenizer, load_tokenizer
from tests.scale import IS_SOAK

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "models" / "tiny-chat"
FUNCTIONS = ROOT.parent / "shared" / "data" / "corpora" / "bfcl_tools.jsonl"
FAST = 60  # of the real schemas, in `make test`


def write_vocabulary(folder: Path, tokenizer: HFTokenizer | None = None) -> Path:
    path = folder / "tokens.vocabulary"
    (tokenizer or load_tokenizer(BUNDLED)).vocabulary().write(path)
    return path


def real_schemas() -> list[str]:
    """The parameters of 1,415 functions in the wild, each once, as a request's grammar has them."""
    if not FUNCTIONS.is_file():
        pytest.skip(f"no function schemas at {FUNCTIONS}")
    lines = FUNCTIONS.read_text(encoding="utf-8").splitlines()
    functions = [function for line in lines for function in json.loads(line)["functions"]]
    distinct = list(dict.fromkeys(schemas.as_json(function["parameters"], "tools") for function in functions))
    return distinct if IS_SOAK else distinct[:: len(distinct) // FAST]


def validate(answer: str, schema: Any) -> None:
    """Raises where the answer is no JSON of the schema, by a judge that has no part in the constraint."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema judges the answers: pip install jsonschema")
    jsonschema.Draft202012Validator(schema).validate(json.loads(answer))
