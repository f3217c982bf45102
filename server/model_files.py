"""Where a model's files are: a local folder, or a Hugging Face id that is fetched into the hub's cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from server.settings_models import HUB_ID

# No code and no pickles: the small files, and of the weights safetensors only, or of a repository's many graphs those
# that the engine looks for.
_SMALL = ["*.json", "*.jinja", "*.txt", "*.model"]
WEIGHTS = [*_SMALL, "*.safetensors"]
_GRAPH_NAMES = ("model", "model_quantized", "decoder_model_merged")
GRAPHS = [*_SMALL, *(f"{place}{name}.onnx*" for place in ("", "onnx/") for name in _GRAPH_NAMES)]


_SAMPLE = 65_536  # bytes
_INNER_SAMPLE, _NUM_INNER = 4096, 256  # adapting a model may leave its first and its last tensors as they were


def digest(folder: Path) -> str:
    """Of the files that decide what a model answers: names, sizes, the first and the last bytes of each, and some of
    those between at regular distances."""
    found = hashlib.sha256()
    patterns = (*WEIGHTS, "*.onnx", "onnx/*.onnx")
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file()):
        size = path.stat().st_size
        with path.open("rb") as file:
            found.update(f"{path.relative_to(folder)}\0{size}\0".encode())
            found.update(file.read(_SAMPLE))
            for number in range(_NUM_INNER if size > 2 * _SAMPLE else 0):
                file.seek(size * number // _NUM_INNER)
                found.update(file.read(_INNER_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            found.update(file.read())
    return found.hexdigest()


class ModelFilesError(Exception):
    """The files can't be had. The message is one line."""


def find(path_or_id: str, wanted: Sequence[str] = WEIGHTS) -> Path:
    """The local folder of a model; blocks while the `wanted` files are fetched. Raises ModelFilesError."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(HUB_ID, path_or_id):
        raise ModelFilesError(f"{path_or_id}: expected a folder with a model, or a Hugging Face id such as org/name")
    try:
        return Path(snapshot_download(path_or_id, allow_patterns=list(wanted)))  # nosec B615
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelFilesError(f"{path_or_id}: no such folder here, and no such model on the Hugging Face hub") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelFilesError(
            f"{path_or_id}: no such folder here, and the Hugging Face hub can't be reached ({type(error).__name__})"
        ) from None
