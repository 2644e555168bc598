"""From a request to a pending answer, and from its chunks to OpenAI's objects."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from glm_int4.errors import GLMError, InputError, PromptTooLongError, UserError, is_out_of_memory
from glm_int4.generation.sampling import SamplingParams
from glm_int4.server.answers import ChatAnswer, Chunk, TextAnswer
from glm_int4.server.api_errors import ApiError
from glm_int4.server.event_stream import COMMENT, DONE, event, next_or_comment
from glm_int4.server.openai_messages import read_messages, write_calls
from glm_int4.server.schemas import ChatRequest, CompletionRequest
from glm_int4.server.settings import Settings
from glm_int4.server.worker import PendingAnswer, Worker
from glm_int4.text import StreamDecoder
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.tools import check_tools, write_tools

# A token of the official vocabularies stands for 80 characters (spaces) at most.
_CHARACTERS_PER_TOKEN = 80
# OpenAI's default for completions; a chat's answer ends where the model ends it.
_COMPLETION_TOKENS = 16

Request = ChatRequest | CompletionRequest


class RequestHandler:
    """Takes checked requests for one engine."""

    def __init__(self, worker: Worker, settings: Settings) -> None:
        self._worker, self._settings, self._engine = worker, settings, worker.engine

    async def accept(self, request: Request) -> "AnswerWriter":
        """Hand a request to the engine.

        Raises:
            ApiError: what is wrong with it, or that the queue is full.
        """
        name = self._settings.model_name
        if request.model is not None and request.model not in (name, ""):
            raise ApiError(404, f"expected the model {name}, got another", code="model_not_found", param="model")
        self._worker.check_room()  # before any time is spent on it
        try:
            # Long prompts take a while to encode, and the event loop has others to serve.
            pending = await asyncio.to_thread(self._make_pending, request)
        except UserError as error:
            code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else None
            raise ApiError(400, str(error), code=code) from error
        except (UnicodeError, RecursionError) as error:
            raise ApiError(400, "expected texts in UTF-8 and tools of a sensible depth, got others") from error
        self._worker.submit(pending)
        return AnswerWriter(pending, request, name)

    def _make_pending(self, request: Request) -> PendingAnswer:
        engine, sampling = self._engine, _sampling(request)
        prompt: list[int]
        answer: TextAnswer
        if isinstance(request, CompletionRequest):
            prompt = self._completion_prompt(request.prompt)
            limit = request.max_tokens or _COMPLETION_TOKENS
            answer = TextAnswer(StreamDecoder(engine.tokenizer), sampling.stop)
        else:
            prompt, tools = self._chat_prompt(request)
            limit = request.max_completion_tokens or request.max_tokens or engine.max_length
            answer = ChatAnswer(chat_format(engine.config.version), engine.tokenizer, sampling.stop, tools)
        limit = min(limit, self._settings.max_new_tokens or limit)
        return self._worker.pending(prompt, limit, sampling, answer, () if request.ignore_eos else engine.stop_ids)

    def _chat_prompt(self, request: ChatRequest) -> tuple[list[int], list[dict[str, Any]]]:
        if len(request.messages) > self._settings.max_messages:
            raise InputError(
                f"expected at most {self._settings.max_messages} messages, got {len(request.messages)}; "
                "send the last ones"
            )
        tools = check_tools(request.tools) if request.tool_choice != "none" else []
        messages = read_messages(request.messages)
        written = len(write_tools(tools)) if tools else 0
        self._check_size(sum(len(message["content"]) for message in messages) + written)
        engine = self._engine
        return chat_format(engine.config.version).encode(engine.tokenizer, messages, tools or None), tools

    def _completion_prompt(self, prompt: str | list[int]) -> list[int]:
        engine = self._engine
        if isinstance(prompt, str):
            self._check_size(len(prompt))
            return engine.tokenizer.encode_prompt(prompt)
        if max(prompt) >= engine.config.vocab_size:
            raise InputError(f"expected token ids below {engine.config.vocab_size}, got {max(prompt)}")
        return list(prompt)

    def _check_size(self, num_characters: int) -> None:
        """Refuse what cannot fit before any time is spent on it."""
        most = _CHARACTERS_PER_TOKEN * self._engine.max_length
        if num_characters > most:
            raise PromptTooLongError(self._engine.max_length, f"{num_characters} characters")


def _sampling(request: Request) -> SamplingParams:
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        seed=None if request.seed is None else request.seed % 2**63,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
    )


class AnswerWriter:
    """An accepted request: its answer as one object, or as events."""

    def __init__(self, pending: PendingAnswer, request: Request, model_name: str) -> None:
        self.pending, self._request = pending, request
        self._chat = isinstance(request, ChatRequest)
        kind = "chatcmpl" if self._chat else "cmpl"
        self._head = {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model_name}
        self._num_tokens = 0

    async def whole(self) -> dict[str, Any]:
        """The complete answer.

        Raises:
            ApiError: the engine could not give it.
        """
        text = ""
        while True:
            chunk = await self.pending.chunks.get()
            if chunk.error is not None:
                raise _as_api_error(chunk.error) from chunk.error
            text += chunk.text
            self._num_tokens += chunk.num_tokens
            if chunk.end:
                break
        choice: dict[str, Any] = {"index": 0, "finish_reason": chunk.end, "logprobs": None}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": text or (None if chunk.calls else "")}
            message["refusal"] = None
            if chunk.calls:
                message["tool_calls"] = write_calls(chunk.calls)
            choice["message"] = message
        else:
            choice["text"] = text
        name = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": name, "choices": [choice], "usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; an error is one too."""
        if self._chat:
            yield self._event({"role": "assistant", "content": ""})
        while True:
            chunk = await next_or_comment(self.pending.chunks)
            if chunk is None:
                yield COMMENT
                continue
            chunk = self._with_what_waits(chunk)
            self._num_tokens += chunk.num_tokens
            if chunk.text:
                yield self._event({"content": chunk.text})
            if chunk.error is not None:
                yield event(_as_api_error(chunk.error).as_dict())
                return
            if chunk.end:
                break
        if chunk.calls:
            calls = [{"index": i, **call} for i, call in enumerate(write_calls(chunk.calls))]
            yield self._event({"tool_calls": calls})
        yield self._event({}, chunk.end)
        if self._request.stream_options and self._request.stream_options.include_usage:
            yield event({**self._head, "object": self._object, "choices": [], "usage": self._usage()})
        yield DONE

    def _with_what_waits(self, chunk: Chunk) -> Chunk:
        """Join chunks that came while the client took the last one."""
        while not (chunk.end or chunk.error or self.pending.chunks.empty()):
            after = self.pending.chunks.get_nowait()
            after.text, after.num_tokens = chunk.text + after.text, chunk.num_tokens + after.num_tokens
            chunk = after
        return chunk

    @property
    def _object(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _event(self, delta: dict[str, Any], end: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": end}
        if self._chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return event({**self._head, "object": self._object, "choices": [choice]})

    def _usage(self) -> dict[str, int]:
        prompt = len(self.pending.sequence.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._num_tokens,
            "total_tokens": prompt + self._num_tokens,
        }


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GLMError):
        return ApiError(500, str(error))
    if is_out_of_memory(error):
        return ApiError(500, "expected enough memory for this answer, got too little; ask for less, or again later")
    return ApiError(500, f"expected an answer, got a fault of the server ({type(error).__name__}); its log has more")
