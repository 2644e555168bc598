"""From the chunks of answers to OpenAI's objects: one at the end, or events on the way."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from glm_int4.errors import GLMError, is_out_of_memory
from glm_int4.generation.scoring import ScoredToken
from glm_int4.server.answers import Chunk
from glm_int4.server.api_errors import ApiError
from glm_int4.server.event_stream import COMMENT, DONE, event, next_or_comment
from glm_int4.server.openai_messages import write_calls
from glm_int4.server.protocol.token_scores import TokenTexts
from glm_int4.server.schemas import ChatRequest, CompletionRequest
from glm_int4.server.worker import PendingAnswer


class AnswerWriter:
    """An accepted request: its answers as one object, or as events.

    Args:
        jobs: the answers, which share one queue of chunks; their indices count from 0.
        echoes: of each, the text to put in front of it.
        tokens: to write log-probabilities with; None writes none.
        kept: of the answers to one prompt, how many are given: the most likely ones. None gives all.
    Attributes:
        ignored: fields of the request that have no effect.
    """

    def __init__(
        self,
        jobs: Sequence[PendingAnswer],
        request: ChatRequest | CompletionRequest,
        model_name: str,
        *,
        echoes: Sequence[str] = (),
        ignored: Sequence[str] = (),
        tokens: TokenTexts | None = None,
        kept: tuple[int, int] | None = None,
    ) -> None:
        self.jobs, self.ignored = jobs, ignored
        self._request, self._chunks = request, jobs[0].chunks
        self._echoes, self._tokens, self._kept = echoes or [""] * len(jobs), tokens, kept
        self._num_told = [0] * len(jobs)  # tokens of every answer whose log-probabilities are written
        self._chat = isinstance(request, ChatRequest)
        self._as_function = isinstance(request, ChatRequest) and not request.tools  # how calls were written before
        kind = "chatcmpl" if self._chat else "cmpl"
        self._head = {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model_name}
        self.num_tokens = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        prompts = {id(job.sequence.prompt): job.sequence.prompt for job in self.jobs}
        return sum(map(len, prompts.values()))

    async def whole(self) -> dict[str, Any]:
        """The complete answers.

        Raises:
            ApiError: the engine could not give one.
        """
        whole = [Chunk(text=echo) for echo in self._echoes]
        while not all(answer.end for answer in whole):
            chunk = await self._chunks.get()
            if chunk.error is not None:
                raise as_api_error(chunk.error) from chunk.error
            self.num_tokens += chunk.num_tokens
            whole[chunk.index] = _joined(whole[chunk.index], chunk)
        prompts = await self._prompt_logprobs()
        choices = [self._choice(index, answer, prompts) for index, answer in enumerate(self._best(whole))]
        name = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": name, "choices": choices, "usage": self._usage()}

    def _best(self, whole: list[Chunk]) -> list[Chunk]:
        """Of every prompt's answers, those with the highest log-probability for a token."""
        if self._kept is None:
            return whole
        number, kept = self._kept
        groups = (whole[first : first + number] for first in range(0, len(whole), number))
        return [answer for group in groups for answer in sorted(group, key=_likelihood, reverse=True)[:kept]]

    async def _prompt_logprobs(self, jobs: Sequence[PendingAnswer] | None = None) -> dict[int, dict[str, Any]]:
        """``logprobs`` of what is echoed, by index; made in a thread, since long prompts take a while."""
        wanted = [job for job in (self.jobs if jobs is None else jobs) if job.sequence.scores]
        return await asyncio.to_thread(self._write_prompts, wanted) if wanted else {}

    def _write_prompts(self, jobs: Sequence[PendingAnswer]) -> dict[int, dict[str, Any]]:
        assert self._tokens is not None
        written: dict[int, dict[str, Any]] = {}
        one: dict[int, dict[str, Any]] = {}
        for job in jobs:
            scores = job.sequence.scores
            assert scores is not None
            if id(scores) not in one:  # several answers to one prompt
                offsets = self._tokens.offsets(job.sequence.prompt, len(self._echoes[job.index]))
                one[id(scores)] = self._tokens.completion(scores.scored, offsets)
            written[job.index] = one[id(scores)]
        return written

    def _choice(self, index: int, answer: Chunk, prompts: dict[int, dict[str, Any]]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": self._end(answer)}
        choice["logprobs"] = self._logprobs(answer.index, answer.scored)
        if prompt := prompts.get(answer.index):
            new = choice["logprobs"] or {}
            choice["logprobs"] = {name: values + new.get(name, []) for name, values in prompt.items()}
        if not self._chat:
            return choice | {"text": answer.text}
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.calls else "")}
        return choice | {"message": message | {"refusal": None} | self._calls(answer, indexed=False)}

    async def events(self) -> AsyncIterator[bytes]:
        """The answers as server-sent events; an error is one too."""
        for index, echo in enumerate(self._echoes):
            if self._chat:
                yield self._event(Chunk(index=index), {"role": "assistant", "content": ""})
            elif echo and not self.jobs[index].sequence.scores:
                yield self._event(Chunk(index=index), {"content": echo})
        running = len(self.jobs)
        unread = {job.index: job for job in self.jobs if job.sequence.scores}  # echoed with what is known of them
        while running:
            first = await next_or_comment(self._chunks)
            if first is None:
                yield COMMENT
                continue
            for chunk in self._with_what_waits(first):
                self.num_tokens += chunk.num_tokens
                if chunk.error is None and (job := unread.pop(chunk.index, None)):
                    logprobs = await self._prompt_logprobs([job])
                    yield self._event(
                        Chunk(index=chunk.index), {"content": self._echoes[chunk.index]}, logprobs=logprobs
                    )
                if chunk.text or (chunk.scored and self._tokens):
                    yield self._event(chunk, {"content": chunk.text})
                if chunk.error is not None:
                    yield event(as_api_error(chunk.error).as_dict())
                    return
                last = Chunk(index=chunk.index)
                if chunk.calls:
                    yield self._event(last, self._calls(chunk, indexed=True))
                if chunk.end:
                    yield self._event(last, {}, self._end(chunk))
                    running -= 1
        if self._request.stream_options and self._request.stream_options.include_usage:
            yield event({**self._head, "object": self._object, "choices": [], "usage": self._usage()})
        yield DONE

    def _with_what_waits(self, first: Chunk) -> list[Chunk]:
        """A chunk and those that came while the client took the last one, joined for each answer."""
        joined = {first.index: first}
        while not self._chunks.empty():
            after = self._chunks.get_nowait()
            before = joined.get(after.index)
            joined[after.index] = after if before is None else _joined(before, after)
        return list(joined.values())

    def _calls(self, chunk: Chunk, *, indexed: bool) -> dict[str, Any]:
        """The calls of an answer, numbered in a stream; the one that OpenAI's first form has room for."""
        if not chunk.calls:
            return {}
        calls = write_calls(chunk.calls)
        if self._as_function:
            return {"function_call": calls[0]["function"]}
        return {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)] if indexed else calls}

    def _end(self, chunk: Chunk) -> str | None:
        return "function_call" if chunk.calls and self._as_function else chunk.end

    def _logprobs(self, index: int, scored: Sequence[ScoredToken]) -> dict[str, Any] | None:
        if self._tokens is None or not scored:
            return None
        if self._chat:
            return self._tokens.chat(scored)
        pieces, first = self.jobs[index].answer.pieces, self._num_told[index]
        self._num_told[index] += len(scored)
        starts = [*pieces.starts[first : first + len(scored)], pieces.length][: len(scored)]  # the last may be no text
        return self._tokens.completion(scored, [len(self._echoes[index]) + start for start in starts])

    @property
    def _object(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _event(
        self,
        chunk: Chunk,
        delta: dict[str, Any],
        end: str | None = None,
        logprobs: dict[int, dict[str, Any]] | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {"index": chunk.index, "finish_reason": end}
        choice["logprobs"] = (logprobs or {}).get(chunk.index) or self._logprobs(chunk.index, chunk.scored)
        if self._chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return event({**self._head, "object": self._object, "choices": [choice]})

    def _usage(self) -> dict[str, int]:
        prompt = self.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.num_tokens,
            "total_tokens": prompt + self.num_tokens,
        }


def _joined(before: Chunk, after: Chunk) -> Chunk:
    """Two chunks of one answer as one; changes the second."""
    after.text, after.num_tokens = before.text + after.text, before.num_tokens + after.num_tokens
    after.scored = before.scored + after.scored
    return after


def _likelihood(answer: Chunk) -> float:
    """Log-probability for a token."""
    return sum(token.logprob or 0.0 for token in answer.scored) / max(len(answer.scored), 1)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an answer that failed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GLMError):
        return ApiError(500, str(error))
    if is_out_of_memory(error):
        return ApiError(500, "expected enough memory for this answer, got too little; ask for less, or again later")
    return ApiError(500, f"expected an answer, got a fault of the server ({type(error).__name__}); its log has more")
