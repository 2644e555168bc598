"""The tokenizer beside the weights: whether the two belong together, and the ids in front of a text."""

from pathlib import Path

from glm_int4.checkpoint.files.folder import unfinished_in
from glm_int4.downloads import shown
from glm_int4.errors import TokenizerError
from glm_int4.models.config import Config
from glm_int4.text import Tokenizer, load_tokenizer
from glm_int4.text.tokenizer_loading import has_tokenizer


def load_checked_tokenizer(folder: Path, config: Config) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, or None where it holds none.

    Raises:
        TokenizerError: it cannot be read, or prompts and the model would mean different ids; or it is missing in a
            folder whose download is not finished.
    """
    if not has_tokenizer(folder, config.version):
        if unfinished := unfinished_in(folder):
            raise TokenizerError(f"expected a tokenizer in {folder}, got none yet{unfinished}")
        return None
    tokenizer = load_tokenizer(folder, config.version)
    for name, token_id in config.special_ids.items():
        if token_id != getattr(tokenizer, name):
            raise TokenizerError(
                f"expected {name.replace('_', '_token_')} {token_id} as in config.json from the tokenizer, "
                f"got {getattr(tokenizer, name)}; the tokenizer and the weights are of different revisions"
            )
    for token_id in config.stop_token_ids:
        if not tokenizer.id_to_piece(token_id):
            raise TokenizerError(
                f"expected a token for {token_id} of eos_token_id in config.json from the tokenizer, got none; "
                "the tokenizer and the weights are of different revisions"
            )
    for content, token_id in tokenizer.added.ids.items():
        if token_id >= config.vocab_size:
            raise TokenizerError(
                f"expected ids below {config.vocab_size}, which is how many rows the embedding has, got {token_id} for "
                f"the added token {shown(content)}; take the tokenizer's files that belong to the model"
            )
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"expected a tokenizer of at most {config.vocab_size} ids, as many as the model has rows, "
            f"got {tokenizer.vocab_size}; the tokenizer and the weights are of different models"
        )
    return tokenizer


def text_prefix(config: Config, tokenizer: Tokenizer | None) -> list[int]:
    """The ids in front of a text that a model continues: [gMASK] and sop. Version 1's config names them itself."""
    if config.text_prefix_ids is not None:
        return config.text_prefix_ids
    return [] if tokenizer is None else list(tokenizer.prefix_ids)
