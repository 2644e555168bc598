"""peft's prefix tuning: its embeddings are the keys and values of a P-Tuning prefix, in the same order."""

from pathlib import Path

import torch

from glm_int4.adapters.adapter_file import map_adapter
from glm_int4.adapters.lora_settings import PrefixSettings
from glm_int4.checkpoint.prefix_file import load_prefix
from glm_int4.downloads import shown_name
from glm_int4.errors import CheckpointError
from glm_int4.models.config import Config
from glm_int4.models.past import Prefix

_NAME = "prompt_embeddings"


def read_peft_prefix(
    folder: Path, settings: PrefixSettings, config: Config, device: torch.device, dtype: torch.dtype
) -> Prefix:
    """The keys and values of an adapter of PREFIX_TUNING; positions of tokens start at 0, as ChatGLM's code has it.

    Raises:
        CheckpointError: it is for another model, or not what its settings say.
    """
    path, stored = map_adapter(folder)
    if list(stored) != [_NAME]:
        got = ", ".join(map(shown_name, list(stored)[:3])) or "nothing"
        raise CheckpointError(f"expected {_NAME} alone in {path}, got {got}; download the whole adapter")
    embeddings = stored[_NAME]
    if embeddings.dim() != 2 or len(embeddings) != settings.num_virtual_tokens:
        raise CheckpointError(
            f"expected {_NAME} of {settings.num_virtual_tokens} rows in {path}, as num_virtual_tokens says, got shape "
            f"{tuple(embeddings.shape)}; take adapter_config.json and the tensors of the same training"
        )
    return load_prefix(path, config, device, dtype, {"embedding.weight": embeddings})
