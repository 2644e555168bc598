"""The engine: a loaded model, its tokenizer, and what can be done with the two."""

import logging
from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
from torch import Tensor

from glm_int4.adapters.named_adapters import NamedAdapters
from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.errors import InputError, PromptTooLongError, TokenizerError
from glm_int4.generation.constraints.compiler import ConstraintCompiler
from glm_int4.generation.constraints.matcher import Matcher
from glm_int4.generation.decoding import Decoder
from glm_int4.generation.padded_batch import Batch, TokenIds, as_rows, is_batch
from glm_int4.generation.prompt_lookup import PromptLookup
from glm_int4.generation.records import StreamRecord
from glm_int4.generation.sampling import Sampler, SamplingParams
from glm_int4.generation.scoring import PerplexityResult, measure
from glm_int4.generation.stopping import AnswerText
from glm_int4.models import Model
from glm_int4.models.past import Past, Prefix
from glm_int4.text import StreamDecoder, Tokenizer
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.messages import Message
from glm_int4.text.chat.replies import Reply
from glm_int4.text.chat.tools import Tool

logger = logging.getLogger(__name__)

_OFFICIAL = SamplingParams()  # of the version


class Engine:
    """A model ready to run; made by ``glm_int4.load``.

    Wherever a method takes an adapter, this is the name of one of ``adapters``; None runs the model without them.

    Attributes:
        model, config: the network and its config.
        prefix: keys and values in front of every sequence, or None.
        stop_ids: the ids that end an answer: config.json's list in version 4; version 3's roles need its tokenizer.
        max_length: most tokens of a sequence, prompt included; a prefix does not count.
        adapters: LoRA by name; ``adapters.load(name, folder)`` adds one.
    """

    def __init__(
        self,
        model: Model,
        info: CheckpointInfo,
        setup: ComputeSetup,
        tokenizer: Tokenizer | None,
        max_length: int,
        prefix: Prefix | None = None,
        adapters: NamedAdapters | None = None,
    ) -> None:
        self.model, self.config, self.info, self.setup = model, info.config, info, setup
        self.max_length, self.prefix = max_length, prefix
        self.adapters = NamedAdapters(model, setup) if adapters is None else adapters
        self._tokenizer = tokenizer
        own_ids = (self.config.eos_token_id,) if tokenizer is None else tokenizer.stop_ids
        self.stop_ids = self.config.stop_token_ids or own_ids
        self._prefix_length = prefix.length if prefix else 0
        self._decoder = Decoder(model, setup, max_length, prefix)
        self._format = chat_format(self.config.version)
        self._warned_of_base = False
        self._constraints: ConstraintCompiler | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises TokenizerError where the folder had none."""
        if self._tokenizer is None:
            raise TokenizerError(
                f"expected a tokenizer ({self.config.tokenizer_file}) beside the weights, got none; "
                "copy it from the official repository"
            )
        return self._tokenizer

    @property
    def constraints(self) -> ConstraintCompiler:
        """What makes matchers of constraints for this tokenizer."""
        if self._constraints is None:
            self._constraints = ConstraintCompiler(self.tokenizer, self.config.vocab_size)
        return self._constraints

    def matchers(
        self, sampling: SamplingParams, stop_ids: frozenset[int], *, rows: int = 1, at_start: bool = True
    ) -> list[Matcher]:
        """One a row for the constraint of ``sampling``, none without; see ``ConstraintCompiler.matcher``."""
        constraint = sampling.constraint
        if constraint is None:
            return []
        return [self.constraints.matcher(constraint, stop_ids, at_start=at_start) for _ in range(rows)]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.setup.device

    @property
    def text_prefix(self) -> list[int]:
        """The ids in front of a text that the model continues: [gMASK] and sop."""
        known = self.config.text_prefix_ids
        return self.tokenizer.prefix_ids if known is None else known

    @torch.inference_mode()
    def logits(self, token_ids: TokenIds | Sequence[TokenIds], adapter: str | None = None) -> Tensor:
        """Logits of every position.

        Args:
            token_ids: ids, used verbatim, or a list of such rows, which are left-padded.
        Returns:
            (B, T, V) float32; positions of padding mean nothing.
        """
        batch = Batch(self.model, token_ids, self.setup.device, self._prefix_length)
        mask = batch.prefill_mask(self.setup.stream_dtype)
        with self.model.choice.of(self._number(adapter)):
            return self.model(batch.token_ids, batch.positions, mask, self.prefix)

    @torch.inference_mode()
    def hidden_states(self, token_ids: TokenIds) -> Tensor:
        """Final hidden states (T, hidden_size) of one sequence; ``model.lm_head`` makes logits of them.

        With an INT8 cache, all attention reads keys and values as that cache keeps them.
        """
        batch = Batch(self.model, token_ids, self.setup.device, self._prefix_length)
        mask = batch.prefill_mask(self.setup.stream_dtype)
        past: Past = self.prefix
        if self.setup.kv_dtype == torch.int8:
            past = self._decoder.new_cache(1, batch.num_tokens)
        self.model.choice.numbers = 0
        return self.model.last_hidden_state(batch.token_ids, batch.positions, mask, past)[0]

    def generate(
        self,
        token_ids: TokenIds | Sequence[TokenIds],
        max_new_tokens: int = 64,
        sampling: SamplingParams | None = None,
        stop_ids: Sequence[int] | None = None,
        adapter: str | None = None,
    ) -> list[int] | list[list[int]]:
        """Continue ids, used verbatim.

        Args:
            token_ids: ids, or a list of rows, which run as one left-padded batch.
            max_new_tokens: most tokens to add; ``max_length`` counts too.
            sampling: None for the official defaults.
            stop_ids: ids that end a row; None for the version's, [] for none.
        Returns:
            The new ids without the stop id; a list of rows for a list of rows.
        Raises:
            InputError: no ids, ids outside the vocabulary, or more than ``max_length``; no such adapter.
        """
        rows: list[list[int]] = [[] for _ in as_rows(token_ids)]
        for step in self._decode(token_ids, max_new_tokens, sampling, stop_ids, adapter=adapter):
            for row, token in zip(rows, step, strict=True):
                if token is not None:
                    row.append(token)
        return rows if is_batch(token_ids) else rows[0]

    def stream_ids(
        self,
        token_ids: TokenIds,
        max_new_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop_ids: Sequence[int] | None = None,
        adapter: str | None = None,
    ) -> Iterator[int]:
        """As ``generate`` for one sequence, an id at a time; None for ``max_new_tokens`` is no limit."""
        for (token,) in self._decode(list(token_ids), max_new_tokens, sampling, stop_ids, adapter=adapter):
            if token is not None:
                yield token

    def stream_text(
        self,
        token_ids: TokenIds,
        max_new_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        record: StreamRecord | None = None,
        adapter: str | None = None,
    ) -> Iterator[str]:
        """Continue ids and yield the text as it comes, never half a character.

        A stop text ends the stream and is not part of it. ``record``, if given, is filled in as it goes.
        """
        sampling = sampling or _OFFICIAL
        text = AnswerText(StreamDecoder(self.tokenizer), sampling.stop)
        return self._stream(token_ids, text, max_new_tokens, sampling, record or StreamRecord(), adapter)

    def stream_chat(
        self,
        messages: Sequence[Message],
        max_new_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        record: StreamRecord | None = None,
        tools: Sequence[Tool] | None = None,
        adapter: str | None = None,
    ) -> Iterator[str]:
        """Answer a conversation; the pieces add up to ``chat``'s answer.

        Args:
            messages: ``{"role": ..., "content": ...}``, the last one the user's; from version 3 on perhaps an
                observation, which is what a tool answered.
            max_new_tokens: None goes on to ``max_length``.
            record: if given, is filled in as it goes.
            tools: definitions of what the model may call (from version 3 on).
        Raises:
            InputError: an empty question, roles out of order, or more tokens than ``max_length``.
        """
        if self.info.is_base and not self._warned_of_base:
            self._warned_of_base = True
            logger.warning("this is a base model, by its name: it continues texts and was not trained to answer")
        sampling, tokenizer = sampling or _OFFICIAL, self.tokenizer
        prompt = self._format.encode(tokenizer, messages, tools)
        if sampling.constraint is not None:  # which is for the content alone, and for every character of it
            prompt += self._format.before_content(tokenizer)
            text = AnswerText(StreamDecoder(tokenizer), sampling.stop)
            return self._stream(prompt, text, max_new_tokens, sampling, record or StreamRecord(), adapter)
        text = AnswerText(self._format.reply_decoder(tokenizer), sampling.stop, self._format.response_stream())
        return self._stream(prompt, text, max_new_tokens, sampling, record or StreamRecord(), adapter)

    def chat(
        self,
        messages: Sequence[Message],
        max_new_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        tools: Sequence[Tool] | None = None,
        adapter: str | None = None,
    ) -> str:
        """Answer a conversation; as ``stream_chat``, at once."""
        return "".join(self.stream_chat(messages, max_new_tokens, sampling, tools=tools, adapter=adapter))

    def reply(
        self,
        messages: Sequence[Message],
        max_new_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        tools: Sequence[Tool] | None = None,
        adapter: str | None = None,
    ) -> Reply:
        """Answer a conversation; the answer comes taken apart, with the call of a tool as data (version 3 on)."""
        record = StreamRecord()
        for _ in self.stream_chat(messages, max_new_tokens, sampling, record, tools, adapter):
            pass
        if sampling is not None and sampling.constraint is not None:
            return Reply(content=record.text, raw_content=record.text)
        if tools is None:
            tools = next((message["tools"] for message in messages if message.get("tools")), None)
        return self.parse_reply(record.text, tools)

    def parse_reply(self, text: str, tools: Sequence[Tool] | None = None) -> Reply:
        """Take the text of an answer apart, as the model wrote it (``StreamRecord.text``)."""
        return self._format.parse_reply(text, tools)

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> int:
        """Tokens of a conversation's prompt."""
        return len(self._format.encode(self.tokenizer, messages, tools))

    def perplexity(self, text: str, window: int | None = None, stride: int = 512) -> PerplexityResult:
        """Perplexity of a text; see ``scoring.measure``."""
        return measure(self, text, window=window, stride=stride)

    def _stream(
        self,
        token_ids: TokenIds,
        text: AnswerText,
        max_new_tokens: int | None,
        sampling: SamplingParams,
        record: StreamRecord,
        adapter: str | None,
    ) -> Iterator[str]:
        """The text that continues ids, in pieces that are not empty; fills ``record`` in as it goes."""
        record.prompt_tokens = len(token_ids)
        lookup = PromptLookup(sampling.prompt_lookup) if sampling.prompt_lookup else None
        held = sampling.constraint is not None
        matchers = self.matchers(sampling, frozenset(map(int, self.stop_ids))) if held else []
        for (token,) in self._decode(list(token_ids), max_new_tokens, sampling, None, lookup, matchers, adapter):
            if lookup is not None:
                record.drafted, record.accepted = lookup.drafted, lookup.accepted
            if token is None:
                continue
            record.ids.append(token)
            piece = text.push(token)
            record.text = text.raw
            if piece:
                yield piece
            if text.stopped:
                break
        rest = text.finish()
        record.text = text.raw
        if rest:
            yield rest
        if not text.stopped and not any(matcher.is_complete for matcher in matchers):
            record.cut = len(record.ids) >= self._limit(len(token_ids), max_new_tokens)

    def _decode(
        self,
        token_ids: TokenIds | Sequence[TokenIds],
        max_new_tokens: int | None,
        sampling: SamplingParams | None,
        stop_ids: Sequence[int] | None,
        lookup: PromptLookup | None = None,
        matchers: Sequence[Matcher] | None = None,
        adapter: str | None = None,
    ) -> Iterator[list[int | None]]:
        """Yield the new id of every row, None for rows that have ended, until all have."""
        sampling = sampling or _OFFICIAL
        whole = isinstance(max_new_tokens, Integral) and not isinstance(max_new_tokens, bool)
        if max_new_tokens is not None and not (whole and max_new_tokens >= 1):
            raise InputError(f"expected max_new_tokens to be a whole number of 1 or more, got {max_new_tokens!r}")
        batch = Batch(self.model, token_ids, self.setup.device, self._prefix_length)
        limit = self._limit(batch.num_tokens, max_new_tokens)
        if limit < 1:
            raise PromptTooLongError(self.max_length, str(batch.num_tokens))
        stops = frozenset(map(int, self.stop_ids if stop_ids is None else stop_ids))
        if lookup is None and sampling.prompt_lookup:
            lookup = PromptLookup(sampling.prompt_lookup)
        if matchers is None:
            matchers = self.matchers(sampling, stops, rows=batch.size)
        sampler = Sampler(sampling, self.config.version, matchers)
        chosen = None if adapter is None else self.adapters.find(adapter)
        return self._decoder.stream(batch, limit, sampler, stops, lookup, chosen)

    def _number(self, adapter: str | None) -> int:
        """Of an adapter in the model's layers."""
        found = self.adapters.find(adapter)
        return found.number if found else 0

    def _limit(self, prompt_tokens: int, max_new_tokens: int | None) -> int:
        """Most new tokens behind a prompt."""
        room = self.max_length - prompt_tokens
        return room if max_new_tokens is None else min(max_new_tokens, room)
