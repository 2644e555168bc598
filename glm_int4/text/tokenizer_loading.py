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
from glm_int4.text.tokenizer_v4 import GLM4Tokenizer
from glm_int4.versions import holds_pieces, holds_ranks, later_version

log = logging.getLogger(__name__)

V1_FILE, V2_FILE, FAST_FILE = "ice_text.model", "tokenizer.model", "tokenizer.json"
# Files that hold a version's tokenizer, the first that is there counts.
_FILES = {"1": (V1_FILE,), "2": (V2_FILE,), "3": (V2_FILE,), "4": (V2_FILE, FAST_FILE)}
TOKENIZER_CONFIG, MODEL_CONFIG = "tokenizer_config.json", "config.json"


def load_tokenizer(folder: str | Path, version: str = "auto") -> Any:
    """Load the tokenizer of a checkpoint folder.

    Args:
        folder: holds ``ice_text.model`` (version 1) or ``tokenizer.model`` (2 to 4; in 4 ``tokenizer.json`` will
            do); other files are optional.
        version: "auto", "1", "2", "3" or "4"; "auto" goes by the files, see ``detect_version``.
    Returns:
        A ``Tokenizer``: ``ChatGLMTokenizer`` for version 1, ``ChatGLM2Tokenizer`` for 2 and 3, ``GLM4Tokenizer`` for
        4. It is typed Any because a caller who names the version may rely on the class.
    Raises:
        TokenizerError: no tokenizer file, or one of another version.
    """
    folder = Path(folder)
    if version not in ("auto", *_FILES):
        raise TokenizerError(f"expected version auto, 1, 2, 3 or 4, got {version!r}")
    if version == "auto":
        version, reason = detect_version(folder)
        log.info("tokenizer of version %s in %s: %s", version, folder, reason)
    path = _file_for(folder, version)
    tokenizer: Tokenizer
    match version:
        case "1":
            tokenizer = ChatGLMTokenizer(path, _num_image_tokens(folder), read_added_tokens(folder))
        case "4":
            tokenizer = GLM4Tokenizer(path, read_added_tokens(folder))
        case _:
            tokenizer = ChatGLM2Tokenizer(path, version, read_added_tokens(folder))
    return tokenizer


def detect_version(folder: str | Path) -> tuple[str, str]:
    """Find the version of a folder's tokenizer.

    Versions 2 and 3 share their tokenizer file, so the words around it decide; see ``later_version``.

    Returns:
        The version "1", "2", "3" or "4" and the reason for it; "2" where nothing speaks for "3".
    Raises:
        TokenizerError: there is no tokenizer file, or a JSON file is damaged.
    """
    folder = Path(folder)
    if _holds(folder, V1_FILE):
        return "1", f"it holds {V1_FILE}"
    if holds_ranks(folder / V2_FILE):
        return "4", f"the lines of {V2_FILE}, which is no SentencePiece model"
    if not _holds(folder, V2_FILE):
        if _holds(folder, FAST_FILE):
            return "4", f"it holds {FAST_FILE} alone"
        raise TokenizerError(
            f"expected {V1_FILE} or {V2_FILE} in {folder}, got none; copy it from the official repository"
        )
    return later_version(_read_optional(folder / MODEL_CONFIG), _read_optional(folder / TOKENIZER_CONFIG), folder)


def has_tokenizer(folder: str | Path, version: str) -> bool:
    """Whether a checkpoint folder holds a file that only tokenizers have, or one of a version."""
    return any(_holds(Path(folder), name) for name in (V1_FILE, V2_FILE, *_FILES[version]))


def _file_for(folder: Path, version: str) -> Path:
    """The file of a version's tokenizer; raises TokenizerError where there is none, or one of another version."""
    names = _FILES[version]
    if (found := next((name for name in names if _holds(folder, name)), None)) is None:
        other = next((name for name in (V1_FILE, V2_FILE) if _holds(folder, name)), None)
        raise TokenizerError(
            f"expected {' or '.join(names)} in {folder} for version {version}, got "
            f"{f'{other}, which is of another version' if other else 'none'}; copy it from the official repository"
        )
    path = folder / found
    if found == V2_FILE and FAST_FILE not in names and holds_ranks(path):
        raise TokenizerError(
            f"expected a SentencePiece model in {path} for version {version}, got the lines of GLM-4's tokenizer; "
            "copy the file from the model's own repository"
        )
    if found == V2_FILE and FAST_FILE in names and holds_pieces(path):
        raise TokenizerError(
            f"expected lines of tokens and ranks in {path} for version {version}, got a SentencePiece model, as "
            "ChatGLM3 has; copy the file from the model's own repository"
        )
    return path


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
