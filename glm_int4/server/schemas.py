"""Requests as OpenAI's clients send them. Types are strict; fields that nobody knows here are named, not refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from glm_int4.server.protocol.fields import Seed, StopTexts, TokenLimit, TokenLimitOrNone, Tolerant, TopK, Whole

MOST_CHOICES, MOST_LOGPROBS = 128, 20

TokenId = Annotated[Whole, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Prompts = Annotated[list[Text], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
Choices = Annotated[Whole, Field(ge=1, le=MOST_CHOICES)]


class ContentPart(Tolerant):
    """A piece of a message's content; texts are read."""

    type: str = "text"
    text: str | None = None
    refusal: str | None = None
    # Not read: the answer to their type says so.
    image_url: Any = None
    input_audio: Any = None
    file: Any = None


class FunctionCall(Tolerant):
    """A function's name and its arguments, JSON in a text or an object."""

    name: str
    arguments: str | dict[str, Any] | None = None


class CalledTool(Tolerant):
    """A call in an assistant's message."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Any = None  # not used: where a call that came in a stream stood


class ChatMessage(Tolerant):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart | str] | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    # Not used: OpenAI's clients send them back as they came.
    name: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None


class StreamOptions(Tolerant):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class NamedFunction(Tolerant):
    """The function that an answer must call."""

    name: Text


class AllowedTools(Tolerant):
    """Some of the tools; "required" is the call of one of them."""

    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[list["ToolChoice"], Field(min_length=1)]


class ToolChoice(Tolerant):
    """The tool that an answer must call, its name also without a ``function`` around it; or some of the tools."""

    type: Literal["function", "allowed_tools"] = "function"
    function: NamedFunction | None = None
    name: Text | None = None
    allowed_tools: AllowedTools | None = None


class JSONSchemaFormat(Tolerant):
    """A JSON schema with OpenAI's remarks; answers are always strict."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Tolerant):
    """The form of an answer; beside "json_object" some clients give a schema too."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")


class StructuredOutputs(Tolerant):
    """The form of an answer as vLLM takes it."""

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None


class _Sampled(Tolerant):
    """Fields that both kinds of request have. What is None or absent is the model's official default."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: TopK = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    max_tokens: TokenLimit = None
    stop: StopTexts = None
    seed: Seed = None
    ignore_eos: bool | None = None  # go on to max_tokens whatever the model says; for measuring
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None  # as vLLM called them before
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
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
    max_completion_tokens: TokenLimit = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required", "any"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None  # as tools were called before there were others
    function_call: Literal["auto", "none"] | NamedFunction | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MOST_LOGPROBS)] | None = None


class CompletionRequest(_Sampled):
    """``POST /v1/completions``; lists of ids are used verbatim."""

    prompt: Text | TokenIds | Prompts
    max_tokens: TokenLimitOrNone = None  # 0 reads the prompt alone
    echo: bool | None = None
    best_of: Choices | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=MOST_LOGPROBS)] | None = None


class LoadAdapterRequest(Tolerant):
    """``POST /v1/load_lora_adapter``: the name to serve an adapter under, and that of its folder, if it is another."""

    lora_name: Text
    lora_path: Text | None = None
    lora_int_id: Any = None  # not used: vLLM counts its adapters itself too


class UnloadAdapterRequest(Tolerant):
    """``POST /v1/unload_lora_adapter``."""

    lora_name: Text
    lora_int_id: Any = None  # not used


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
    for model in (
        *(ChatRequest, CompletionRequest, ChatMessage, ContentPart, CalledTool, FunctionCall, StreamOptions),
        *(ToolChoice, AllowedTools, NamedFunction),
        *(ResponseFormat, JSONSchemaFormat, StructuredOutputs),
        *(LoadAdapterRequest, UnloadAdapterRequest),
    )
    for name in model.names()
)
