"""``config.json`` as transformers holds it: the file's keys, and the names that other programs look for.

What the values mean is decided by ``models/config_file.py``, when weights are loaded.
"""

from typing import Any

from transformers import PreTrainedConfig

# What other programs call a key, and what the versions' files call it.
_NAMES = {
    "vocab_size": ("padded_vocab_size",),
    "num_hidden_layers": ("num_layers",),
    "max_position_embeddings": ("max_sequence_length", "seq_length"),
    "intermediate_size": ("inner_hidden_size", "ffn_hidden_size"),
    "num_key_value_heads": ("multi_query_group_num", "num_attention_heads"),
    "head_dim": ("kv_channels",),
}


class ChatGLMConfig(PreTrainedConfig):
    """Configuration of every version; keys of the file keep their official names.

    ``quantization_config`` is left out: programs that find it hand the weights to transformers' quantizers,
    which would decompress them.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("quantization_config", None)
        kwargs["tokenizer_class"] = "ChatGLMTokenizer"
        super().__init__(**kwargs)
        for name, official_names in _NAMES.items():
            value = next((kwargs[key] for key in official_names if kwargs.get(key) is not None), None)
            if value is not None:
                setattr(self, name, value)
