"""ChatGLM in programs that speak transformers: importing this registers configuration, model and tokenizer.

    import glm_int4.hf
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model = AutoModelForCausalLM.from_pretrained("chatglm-6b-int4")
    tokenizer = AutoTokenizer.from_pretrained("chatglm-6b-int4")

Official checkpoints and ours, all versions, without remote code. The weights are read by the engine's loader
and stay packed; transformers does the generating. Nothing else in the package imports transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from glm_int4.hf.configuration import ChatGLMConfig
from glm_int4.hf.modeling import ChatGLMForCausalLM
from glm_int4.hf.tokenization import ChatGLM4Tokenizer, ChatGLMTokenizer

__all__ = ["ChatGLM4Tokenizer", "ChatGLMConfig", "ChatGLMForCausalLM", "ChatGLMTokenizer"]


class _NoConfig(ChatGLMConfig):
    """A configuration that no checkpoint has, to register the tokenizer for.

    A tokenizer that is registered for a checkpoint's own configuration loses to the checkpoint's remote code as soon
    as ``trust_remote_code=True`` is passed, as it often is out of habit. Ours is found by its class's name instead,
    which ``ChatGLMConfig`` and the files give.
    """


class _NoConfig4(ChatGLMConfig):
    """Another one, for GLM-4's tokenizer."""


AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
for _auto_class in (AutoModelForCausalLM, AutoModel, AutoModelForSeq2SeqLM):  # official: the last, too
    _auto_class.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)
AutoTokenizer.register(_NoConfig, tokenizer_class=ChatGLMTokenizer, exist_ok=True)
AutoTokenizer.register(_NoConfig4, tokenizer_class=ChatGLM4Tokenizer, exist_ok=True)
