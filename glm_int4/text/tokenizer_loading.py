"""Finding the tokenizer of a checkpoint folder, and which version it is of."""

import logging
from pathlib import Path
from typing import Any

from glm_int4.downloads import ABSENT, found_instead, read_json, shown
from glm_int4.errors import TokenizerError
from glm_int4.text.added_tokens import read_added_tokens
from glm_int4.text.tokenizer import Tokenizer
from glm_int4.text.tokenizer_v1 import ChatGLMTokenizer
from glm_int4.text.tokenizer_v2 import ChatGLM2Tokenizer
from glm_int4.versions import two_or_three

log = logging.getLogger(__name__)

V1_FILE, V2_FILE = "ice_text.model", "tokenizer.model"
TOKENIZER_CONFIG, MODEL_CONFIG = "tokenizer_config.json", "config.json"


def load_tokenizer(folder: str | Path, version: str = "auto") -> Any:
    """Load the tokenizer of a checkpoint folder.

    Args:
        folder: holds ``ice_text.model`` (version 1) or ``tokenizer.model`` (2 and 3); other files are
            optional.
        version: "auto", "1", "2" or "3"; "auto" goes by the files, see ``detect_version``.
    Returns:
        A ``Tokenizer``: ``ChatGLMTokenizer`` for version 1, ``ChatGLM2Tokenizer`` for 2 and 3. It is typed
        Any because a caller who names the version may rely on the class.
    Raises:
        TokenizerError: no tokenizer file, or one of another version.
    """
    folder = Path(folder)
    if version not in ("auto", "1", "2", "3"):
        raise TokenizerError(f"expected version auto, 1, 2 or 3, got {version!r}")
    if version == "auto":
        version, reason = detect_version(folder)
        log.info("tokenizer of version %s in %s: %s", version, folder, reason)
    wanted, other = (V1_FILE, V2_FILE) if version == "1" else (V2_FILE, V1_FILE)
    if not _holds(folder, wanted):
        found = f"{other}, which is of another version" if _holds(folder, other) else "none"
        raise TokenizerError(
            f"expected {wanted} in {folder} for version {version}, got {found}; copy it from the official repository"
        )
    tokenizer: Tokenizer
    if version == "1":
        tokenizer = ChatGLMTokenizer(folder / V1_FILE, _num_image_tokens(folder), read_added_tokens(folder))
    else:
        tokenizer = ChatGLM2Tokenizer(folder / V2_FILE, version, read_added_tokens(folder))
    return tokenizer


def detect_version(folder: str | Path) -> tuple[str, str]:
    """Find the version of a folder's tokenizer.

    Versions 2 and 3 share their tokenizer file, so the words around it decide; see ``two_or_three``.

    Returns:
        The version "1", "2" or "3" and the reason for it; "2" where nothing speaks for "3".
    Raises:
        TokenizerError: there is no tokenizer file, or a JSON file is damaged.
    """
    folder = Path(folder)
    if _holds(folder, V1_FILE):
        return "1", f"it holds {V1_FILE}"
    if not _holds(folder, V2_FILE):
        raise TokenizerError(
            f"expected {V1_FILE} or {V2_FILE} in {folder}, got none; copy it from the official repository"
        )
    return two_or_three(_read_optional(folder / MODEL_CONFIG), _read_optional(folder / TOKENIZER_CONFIG), folder)


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a checkpoint folder holds a tokenizer file of any version."""
    return any(_holds(Path(folder), name) for name in (V1_FILE, V2_FILE))


def _holds(folder: Path, name: str) -> bool:
    return found_instead(folder / name) != ABSENT


def _read_optional(path: Path) -> dict[str, Any]:
    return {} if found_instead(path) == ABSENT else read_json(path, TokenizerError)


def _num_image_tokens(folder: Path) -> int | None:
    path = folder / TOKENIZER_CONFIG
    value = _read_optional(path).get("num_image_tokens")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**6):
        raise TokenizerError(f"expected num_image_tokens in {path} to be a small integer, got {shown(value)}")
    return value
