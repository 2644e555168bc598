"""Finding the tokenizer of a checkpoint folder."""

from pathlib import Path

from glm_int4.errors import TokenizerError
from glm_int4.files import ABSENT, found_instead, read_json, shown
from glm_int4.text.tokenizer_v1 import ChatGLMTokenizer

V1_FILE, V2_FILE = "ice_text.model", "tokenizer.model"


def load_tokenizer(folder: str | Path, version: str = "auto") -> ChatGLMTokenizer:
    """Load the tokenizer of a checkpoint folder.

    Args:
        folder: holds ``ice_text.model``; ``tokenizer_config.json`` is optional.
        version: "auto", "1", "2" or "3".
    Raises:
        TokenizerError: no tokenizer file, or one of another version.
    """
    folder = Path(folder)
    if version not in ("auto", "1", "2", "3"):
        raise TokenizerError(f"expected version auto, 1, 2 or 3, got {version!r}")
    if version in ("auto", "1") and _holds(folder, V1_FILE):
        return ChatGLMTokenizer(folder / V1_FILE, _num_image_tokens(folder))
    if version in ("2", "3") or _holds(folder, V2_FILE):
        raise TokenizerError(
            f"expected {V1_FILE} in {folder}, got a version 2 or 3 tokenizer; this release runs version 1 only"
        )
    raise TokenizerError(f"expected {V1_FILE} in {folder}, got none; copy it from the official repository")


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a checkpoint folder holds a tokenizer file of any version."""
    return any(_holds(Path(folder), name) for name in (V1_FILE, V2_FILE))


def _holds(folder: Path, name: str) -> bool:
    return found_instead(folder / name) != ABSENT


def _num_image_tokens(folder: Path) -> int | None:
    path = folder / "tokenizer_config.json"
    if found_instead(path) == ABSENT:
        return None
    value = read_json(path, TokenizerError).get("num_image_tokens")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**6):
        raise TokenizerError(f"expected num_image_tokens in {path} to be a small integer, got {shown(value)}")
    return value
