"""Texts to ids and back, in vLLM's fields and llama.cpp's."""

from typing import Annotated, Any

from pydantic import Field

from glm_int4.errors import InputError
from glm_int4.generation.engine import Engine
from glm_int4.server.protocol.fields import Tolerant
from glm_int4.server.schemas import TokenId


class TokenizeRequest(Tolerant):
    """``POST /tokenize``: ``prompt`` as vLLM has it, with special ids unless told otherwise; ``content`` without."""

    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None


class DetokenizeRequest(Tolerant):
    """``POST /detokenize``."""

    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]


def tokenize(engine: Engine, request: TokenizeRequest) -> dict[str, Any]:
    """The ids of a text; raises InputError where there is none."""
    text = request.content if request.prompt is None else request.prompt
    if text is None:
        raise InputError("expected a text as prompt, got none")
    wanted = request.add_special if request.add_special_tokens is None else request.add_special_tokens
    special = request.prompt is not None if wanted is None else wanted
    ids = engine.tokenizer.encode_prompt(text) if special else engine.tokenizer.encode(text)
    return {"tokens": ids, "count": len(ids), "max_model_len": engine.max_length}


def detokenize(engine: Engine, request: DetokenizeRequest) -> dict[str, str]:
    """The text of ids; raises InputError for ids that the model does not have."""
    most = max(request.tokens, default=0)
    if most >= engine.config.vocab_size:
        raise InputError(f"expected token ids below {engine.config.vocab_size}, got {most}")
    text = engine.tokenizer.decode(request.tokens)
    return {"prompt": text, "content": text}
