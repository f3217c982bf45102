"""Where a model's files are: a local folder, or a Hugging Face id that is fetched into the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from server.settings_models import HUB_ID

# Weights as safetensors only, and the small files around them; no code and no pickles.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


class ModelFilesError(Exception):
    """The files can't be had. The message is one line."""


def find(path_or_id: str) -> Path:
    """The local folder of a model; blocks while it is fetched. Raises ModelFilesError."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(HUB_ID, path_or_id):
        raise ModelFilesError(f"{path_or_id}: expected a folder with a model, or a Hugging Face id such as org/name")
    try:
        return Path(snapshot_download(path_or_id, allow_patterns=WANTED))
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelFilesError(f"{path_or_id}: no such folder here, and no such model on the Hugging Face hub") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelFilesError(
            f"{path_or_id}: no such folder here, and the Hugging Face hub can't be reached ({type(error).__name__})"
        ) from None
