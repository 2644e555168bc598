"""From str to token ids and back. No torch here, and no weights."""

from glm_int4.text.loading import load_tokenizer
from glm_int4.text.streaming import StreamDecoder
from glm_int4.text.tokenizer_v1 import ChatGLMTokenizer

Tokenizer = ChatGLMTokenizer

__all__ = ["ChatGLMTokenizer", "StreamDecoder", "Tokenizer", "load_tokenizer"]
