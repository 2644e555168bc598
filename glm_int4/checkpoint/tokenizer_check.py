"""The tokenizer beside the weights: whether the two belong together, and the ids in front of a text."""

from pathlib import Path

from glm_int4.downloads import shown
from glm_int4.errors import TokenizerError
from glm_int4.models.config import ChatGLMConfig, Config
from glm_int4.text import Tokenizer, load_tokenizer
from glm_int4.text.tokenizer_loading import has_tokenizer


def load_checked_tokenizer(folder: Path, config: Config) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, or None where it holds none.

    Raises:
        TokenizerError: it cannot be read, or prompts and the model would mean different ids.
    """
    if not has_tokenizer(folder):
        return None
    tokenizer = load_tokenizer(folder, config.version)
    names = {"eos_token_id": "eos_id"}
    if isinstance(config, ChatGLMConfig):
        names |= {"gmask_token_id": "gmask_id", "mask_token_id": "mask_id", "bos_token_id": "bos_id"}
    for key, name in names.items():
        if getattr(config, key) != getattr(tokenizer, name):
            raise TokenizerError(
                f"expected {key} {getattr(config, key)} as in config.json from the tokenizer, "
                f"got {getattr(tokenizer, name)}; the tokenizer and the weights are of different revisions"
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
    if isinstance(config, ChatGLMConfig):
        return [config.gmask_token_id, config.bos_token_id]
    return [] if tokenizer is None else list(tokenizer.prefix_ids)
