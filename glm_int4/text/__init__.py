"""From str to token ids and back. No torch here, and no weights."""

from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.streaming import StreamDecoder
from glm_int4.text.tokenizer import Tokenizer
from glm_int4.text.tokenizer_loading import load_tokenizer
from glm_int4.text.tokenizer_v1 import ChatGLMTokenizer
from glm_int4.text.tokenizer_v2 import ChatGLM2Tokenizer
from glm_int4.text.tokenizer_v4 import GLM4Tokenizer

__all__ = [
    "ChatGLM2Tokenizer",
    "ChatGLMTokenizer",
    "GLM4Tokenizer",
    "StreamDecoder",
    "Tokenizer",
    "chat_format",
    "load_tokenizer",
]
