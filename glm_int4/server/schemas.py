"""Requests as OpenAI's clients send them. Types are strict, and unknown fields are errors."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_INT64 = Field(ge=-(2**63), le=2**63 - 1)
_TOKENS = Field(ge=1, le=2**31 - 1)

StopText = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class _Lenient(BaseModel):
    """Fields that other servers add to what they answer are not looked at when they come back."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class TextPart(_Lenient):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class FunctionCall(_Lenient):
    """A function's name and its arguments, JSON in a text."""

    name: str
    arguments: str


class CalledTool(_Lenient):
    """A call in an assistant's message."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Lenient):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None


class StreamOptions(_Strict):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(_Strict):
    """The form of an answer: text."""

    type: Literal["text"]


class _Sampled(_Strict):
    """Fields that both kinds of request have. What is None or absent is the model's official default."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    max_tokens: Annotated[int, _TOKENS] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: Annotated[int, _INT64] | None = None
    ignore_eos: bool | None = None  # go on to max_tokens whatever the model says; for measuring
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # One answer without probabilities is what there is; these fields may only say so.
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    # Not used: they describe the caller, or services around a model.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatRequest(_Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, _TOKENS] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: Literal[False] | None = None


class CompletionRequest(_Sampled):
    """``POST /v1/completions``; a list of ids is used verbatim."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    logprobs: None = None


class ErrorDetail(BaseModel):
    """What is wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is an error."""

    error: ErrorDetail


# Of all requests: what the place of a fault is made of, beside the names that types have in it.
FIELD_NAMES = frozenset(
    name
    for model in (ChatRequest, CompletionRequest, ChatMessage, TextPart, CalledTool, FunctionCall, StreamOptions)
    for name in model.model_fields
)
