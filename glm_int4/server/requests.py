"""From a request to pending answers."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glm_int4.adapters.named_adapters import NamedAdapter
from glm_int4.errors import InputError, PromptTooLongError, UserError
from glm_int4.generation.sampling import SamplingParams
from glm_int4.generation.scoring import PromptScores
from glm_int4.server.answers import ChatAnswer, Chunk, TextAnswer
from glm_int4.server.api_errors import ApiError
from glm_int4.server.openai_messages import read_messages
from glm_int4.server.protocol.answer_forms import wanted_form
from glm_int4.server.protocol.answer_writer import AnswerWriter
from glm_int4.server.protocol.error_texts import too_long, unknown_model
from glm_int4.server.protocol.fields import header_names
from glm_int4.server.protocol.token_scores import ScoringSampler, TokenTexts
from glm_int4.server.protocol.tool_definitions import unknown_tool_fields
from glm_int4.server.protocol.wanted_scores import WantedScores, wanted_scores
from glm_int4.server.protocol.wanted_tools import WantedTools, has_choice, wanted_tools
from glm_int4.server.schemas import MOST_CHOICES, ChatRequest, CompletionRequest
from glm_int4.server.settings import Settings
from glm_int4.server.worker import PendingAnswer, Worker
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.tools import write_tools
from glm_int4.text.continued import decoder_behind

logger = logging.getLogger(__name__)

# OpenAI's default for completions; a chat's answer ends where the model ends it.
_COMPLETION_TOKENS = 16
_MOST_NAMES_LOGGED = 256

Request = ChatRequest | CompletionRequest


class RequestHandler:
    """Takes checked requests for one engine."""

    def __init__(self, worker: Worker, settings: Settings) -> None:
        self._worker, self._settings, self._engine = worker, settings, worker.engine
        self._chat = chat_format(self._engine.config.version)
        self._named: set[str] = set()  # fields without effect that the log has

    async def accept(self, request: Request) -> AnswerWriter:
        """Hand a request to the engine.

        Raises:
            ApiError: what is wrong with it, or that the queue is full.
        """
        name, adapter = self._served(request.model)
        ignored = self._check_ignored(request)
        self._worker.check_room()  # before any time is spent on it
        try:
            # Long prompts take a while to encode, and the event loop has others to serve.
            wanted = wanted_scores(request, self._engine.config.vocab_size)
            jobs, echoes = await asyncio.to_thread(self._make_jobs, request, wanted, adapter)
        except PromptTooLongError as error:
            raise ApiError(
                400,
                too_long(error),
                code="context_length_exceeded",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            ) from error
        except UserError as error:
            raise ApiError(400, str(error)) from error
        except (UnicodeError, RecursionError) as error:
            raise ApiError(400, "expected texts in UTF-8 and tools of a sensible depth, got others") from error
        self._worker.submit(jobs)
        return AnswerWriter(
            jobs,
            request,
            name,
            echoes=echoes,
            ignored=ignored,
            tokens=None if wanted.num_top is None else TokenTexts(self._engine.tokenizer),
            kept=(wanted.number, wanted.kept) if wanted.kept < wanted.number else None,
        )

    def _served(self, wanted: str | None) -> tuple[str, NamedAdapter | None]:
        """The name to answer under, and its adapter; raises ApiError for a model that is not served.

        Where there is one model and no adapter, clients that ask for any other are answered by it.
        """
        names, adapters = self._settings.names, self._engine.adapters
        if not wanted or wanted in names:
            return wanted or names[0], None
        if adapter := adapters.get(wanted):
            return wanted, adapter
        if self._settings.strict or self._settings.adapter_dir or adapters.names:
            raise unknown_model([names[0], *adapters.names])
        return names[0], None

    def _check_ignored(self, request: Request) -> list[str]:
        """Fields without effect; the log names each once. Raises ApiError where there may be none."""
        ignored = list(request.ignored)
        if isinstance(request, ChatRequest):
            for name in ("tools", "functions"):
                if definitions := getattr(request, name):
                    ignored += unknown_tool_fields(name, definitions) if self._chat.calls_tools else [name]
            ignored += ["tool_choice"] if has_choice(request) and not self._chat.calls_tools else []
        if ignored and self._settings.strict:
            name = header_names(ignored[:1])
            raise ApiError(400, f"expected fields that have an effect, got {name}; leave it out", param=name)
        self._log_once(ignored)
        return ignored

    def _log_once(self, ignored: Sequence[str]) -> None:
        for given in ignored:
            name = header_names([given])
            if name not in self._named and len(self._named) < _MOST_NAMES_LOGGED:
                self._named.add(name)
                logger.warning("requests have the field %s, which is ignored", name)

    def _make_jobs(
        self, request: Request, wanted: WantedScores, adapter: NamedAdapter | None
    ) -> tuple[list[PendingAnswer], list[str]]:
        """The pending answers of a request, and what stands in front of each."""
        prompts, number = self._prompts(request, scored=wanted.prompt), wanted.number
        if len(prompts) * number > MOST_CHOICES:
            raise InputError(
                f"expected at most {MOST_CHOICES} answers to a request, got {len(prompts) * number}; send less"
            )
        sampling, stops = _sampling(request), () if request.ignore_eos else self._engine.stop_ids
        chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        jobs: list[PendingAnswer] = []
        echoes: list[str] = []
        for prompt in prompts:
            scores = self._prompt_scores(prompt, wanted.num_top or 0) if wanted.prompt else None
            for choice in range(number):
                own = sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + choice) % 2**63)
                if prompt.grammar is not None:  # in place of another form: a call is what its tool takes
                    own = replace(own, grammar=prompt.grammar, json_schema=None, regex=None, choices=None)
                answer = self._answer(request, own.stop, prompt)
                behind = bool(prompt.beginning)
                limit = self._limit(request)
                job = self._worker.pending(prompt.ids, limit, own, answer, stops, behind=behind, adapter=adapter)
                job.chunks, job.index, job.sequence.scores = chunks, len(jobs), scores
                if wanted.noted is not None or wanted.bias:
                    version, matchers = self._engine.config.version, job.sequence.sampler.matchers
                    job.sequence.sampler = ScoringSampler(own, version, wanted.noted, wanted.bias, matchers)
                jobs.append(job)
                echoes.append(prompt.text if isinstance(request, CompletionRequest) and request.echo else "")
        return jobs, echoes

    def _prompts(self, request: Request, *, scored: bool) -> list["_Prompt"]:
        if isinstance(request, ChatRequest):
            return [self._chat_prompt(request)]
        given = request.prompt
        several = isinstance(given, list) and not isinstance(given[0], int)
        return [
            self._completion_prompt(prompt, scored=scored)  # type: ignore[arg-type]
            for prompt in (given if several else [given])
        ]

    def _prompt_scores(self, prompt: "_Prompt", num_top: int) -> PromptScores:
        """For the log-probabilities of a prompt; raises InputError where none of its tokens can have any."""
        num_seen = self._engine.model.context_length(prompt.ids)
        if num_seen > 1 and num_seen >= len(prompt.ids) - 1:
            raise InputError(
                f"expected ids behind {self._engine.tokenizer.sop_id} (<sop>), where log-probabilities of a prompt "
                "are wanted, got none: those in front of it are read in both directions; begin with [gMASK] and <sop>, "
                "as a tokenizer with add_bos_token=True does"
            )
        return PromptScores(prompt.ids, num_seen, num_top)

    def _limit(self, request: Request) -> int:
        if isinstance(request, CompletionRequest):
            unlimited = "max_tokens" in request.model_fields_set and request.max_tokens is None
            given = self._engine.max_length if unlimited else _COMPLETION_TOKENS
            limit = given if request.max_tokens is None else request.max_tokens
        else:
            limit = request.max_completion_tokens or request.max_tokens or self._engine.max_length
        return min(limit, self._settings.max_new_tokens or limit)

    def _answer(self, request: Request, stops: Sequence[str], prompt: "_Prompt") -> TextAnswer:
        engine = self._engine
        has_form = wanted_form(request) and prompt.grammar is None
        if isinstance(request, CompletionRequest) or has_form:  # of which nothing may be cleaned away
            before = prompt.text if prompt.beginning else ""
            return TextAnswer(decoder_behind(engine.tokenizer, prompt.beginning), stops, before)
        return ChatAnswer(self._chat, engine.tokenizer, stops, prompt.tools, prompt.beginning, prompt.text)

    def _chat_prompt(self, request: ChatRequest) -> "_Prompt":
        if len(request.messages) > self._settings.max_messages:
            raise InputError(
                f"expected at most {self._settings.max_messages} messages, got {len(request.messages)}; "
                "send the last ones"
            )
        messages = read_messages(request.messages, self._chat)
        tools = wanted_tools(request) if self._chat.calls_tools else WantedTools()
        written = len(write_tools(tools.given)) if tools.given else 0
        self._check_size(sum(len(message["content"]) for message in messages) + written)
        engine, chat = self._engine, self._chat
        ids, beginning = chat.encode_any_order(engine.tokenizer, messages, tools.given or None)
        text = messages[-1]["content"] if beginning else ""
        if tools.called:  # the call is a message of its own
            ids = [*ids, *beginning, engine.tokenizer.role_ids["assistant"]] if beginning else ids
            beginning, text = chat.encode_call(engine.tokenizer, tools.name) if tools.name else [], ""
        elif wanted_form(request) and not beginning:
            ids += chat.before_content(engine.tokenizer)
        grammar = tools.grammar(chat)
        return _Prompt([*ids, *beginning], text=text, beginning=beginning, tools=tools.given, grammar=grammar)

    def _completion_prompt(self, prompt: str | list[int], *, scored: bool) -> "_Prompt":
        engine = self._engine
        if isinstance(prompt, str):
            self._check_size(len(prompt))
            ids = engine.tokenizer.encode_prompt(prompt)
            # As a perplexity is measured: version 1 would otherwise see a token before it says how likely that is.
            ids = [*engine.text_prefix, *engine.tokenizer.encode(prompt)] if scored else ids
            return _Prompt(ids, text=prompt, beginning=self._continued(ids))
        if max(prompt) >= engine.config.vocab_size:
            raise InputError(f"expected token ids below {engine.config.vocab_size}, got {max(prompt)}")
        return _Prompt(list(prompt), text=engine.tokenizer.decode(prompt), beginning=self._continued(prompt))

    def _continued(self, ids: list[int]) -> list[int]:
        """Of ids, those of the text that goes on behind them: in version 1 an answer is a text of its own."""
        context = self._engine.model.context_length(ids)
        return ids[context + 1 :] if context else ids

    def _check_size(self, num_characters: int) -> None:
        """Refuse what cannot fit before any time is spent on it."""
        most = self._engine.tokenizer.longest_piece * self._engine.max_length
        if num_characters > most:
            raise PromptTooLongError(self._engine.max_length, f"{num_characters} characters")


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Ids, the text that they were, those of them whose text goes on behind them, the tools that may be called, and the
    grammar of the call that must be.

    Of a chat, text and beginning are those of the answer that the assistant has begun.
    """

    ids: list[int]
    text: str = ""
    beginning: Sequence[int] = ()
    tools: list[dict[str, Any]] = field(default_factory=list)
    grammar: str | None = None


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
        **wanted_form(request),
    )
