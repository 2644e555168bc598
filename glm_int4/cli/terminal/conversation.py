"""The conversation: its messages and settings, and asking the next question. Shows nothing."""

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from glm_int4.errors import InputError, naming_exhausted_memory
from glm_int4.generation.engine import Engine
from glm_int4.generation.records import StreamRecord
from glm_int4.generation.sampling import SamplingParams
from glm_int4.text.chat.replies import Reply
from glm_int4.text.chat.tools import Tool

Message = dict[str, Any]

# When old rounds are dropped, a quarter of max_length stays free for the answer.
_ROUNDS_SHARE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What an answer took.

    first_s: until its first text. rest_tokens, rest_s: what came after that text, for the speed.
    limit: the limit that cut the answer, "max_new_tokens" or "max_length"; None if it ended by itself.
    drafted, accepted: tokens that prompt lookup guessed, and those that were right.
    reply: the answer taken apart; None where there was none.
    """

    prompt_tokens: int
    new_tokens: int
    first_s: float
    rest_tokens: int
    rest_s: float
    limit: str | None
    drafted: int = 0
    accepted: int = 0
    reply: Reply | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Speed behind the first text; None where too little came."""
        return self.rest_tokens / self.rest_s if self.rest_tokens and self.rest_s > 0 else None


class Conversation:
    """What was said, and how the next question is asked.

    Attributes:
        name: what the user called the model.
        messages: rounds; one begins with a message of the user.
        tools: what the model may call (version 3). After a call, the next question is its result.
        turns: what each answer took, since the start.
        last_question: what ``retry`` asks again.
        last_answer: what was shown of the last answer.
    """

    def __init__(
        self,
        glm: Engine,
        sampling: SamplingParams,
        *,
        name: str,
        system: str | None = None,
        max_new_tokens: int | None = None,
        tools: list[Tool] | None = None,
    ) -> None:
        self.name = name
        self.tools = tools
        self.glm, self.sampling, self.max_new_tokens = glm, sampling, max_new_tokens
        self.system = system
        self.messages: list[Message] = []
        self.turns: list[Turn] = []
        self.last_question: str | None = None
        self.last_answer: str | None = None
        self._turn_start = 0  # where the last question stands in messages, if it was answered

    @property
    def num_rounds(self) -> int:
        """Questions that the conversation holds."""
        return sum(message["role"] == "user" for message in self.messages)

    def clear(self) -> None:
        """Forget what was said; system text and settings stay."""
        self.messages, self.last_question, self.last_answer, self._turn_start = [], None, None, 0

    def ask(self, question: str) -> Generator[str, None, None]:
        """Yield the answer's pieces; what was said counts even if the answer is broken off.

        Raises:
            GLMError: the question cannot be asked, or memory ran out; the conversation is as before.
        """
        self.last_question = question
        return self._answer(self.messages, question)

    def retry(self) -> Generator[str, None, None]:
        """Ask the last question again, in place of its answer, which stays if there is no new one."""
        question = self.last_question
        if question is None:
            raise InputError("expected a question to ask again, got none so far; ask one")
        before = self.messages[: self._turn_start]
        answered = self.messages[self._turn_start : self._turn_start + 1] == [_asked(before, question)]
        return self._answer(before if answered else self.messages, question)

    def resume(self, messages: list[Message]) -> None:
        """Go on from messages that were said before."""
        self.clear()
        self.messages = messages
        asked = [i for i, message in enumerate(messages) if message["role"] in ("user", "observation")]
        if asked:
            self._turn_start = asked[-1]
            self.last_question = messages[self._turn_start]["content"]
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        self.last_answer = answers[-1] if answers else None

    def _answer(self, before: list[Message], question: str) -> Generator[str, None, None]:
        asked = [*before, _asked(before, question)]
        record = StreamRecord()
        answer = ""
        started = time.perf_counter()
        first: tuple[float, int] | None = None  # when the first text came, and tokens by then
        try:
            messages = [*_front(self.system), *asked]
            stream = self.glm.stream_chat(messages, self.max_new_tokens, self.sampling, record, self.tools)
            with naming_exhausted_memory("answer", "/clear the conversation, or start with a smaller --max-length"):
                for piece in stream:
                    first = first or (time.perf_counter(), len(record.ids))
                    answer += piece
                    yield piece
        finally:
            ended = time.perf_counter()
            reply = self.glm.parse_reply(record.text, self.tools) if record.ids else None
            if reply is not None:
                self._turn_start, self.last_answer = len(before), answer
                self.messages = [*asked, *_said(reply, answer)]
            first_at, first_tokens = first or (ended, len(record.ids))
            self.turns.append(
                Turn(
                    prompt_tokens=record.prompt_tokens,
                    new_tokens=len(record.ids),
                    first_s=first_at - started,
                    rest_tokens=len(record.ids) - first_tokens,
                    rest_s=ended - first_at,
                    limit=self._limit(record),
                    drafted=record.drafted,
                    accepted=record.accepted,
                    reply=reply,
                )
            )

    def _limit(self, record: StreamRecord) -> str | None:
        if not record.cut:
            return None
        return "max_new_tokens" if len(record.ids) == self.max_new_tokens else "max_length"

    def make_room(self, question: str) -> int:
        """Drop the oldest rounds until a question and its answer fit; returns how many.

        Raises:
            InputError: the question is too long on its own; nothing is dropped then.
        """
        glm = self.glm
        kept = self._pending_round()
        alone = self._count([*kept, _asked(kept, question)])
        if alone >= glm.max_length:
            parts = [("tools", self.tools), ("system text", self.system), ("the call that it answers", kept)]
            what = " and ".join(["result" if kept else "question", *(name for name, given in parts if given)])
            raise InputError(f"expected a {what} of less than {glm.max_length} tokens, got {alone}; shorten it")
        messages, dropped = self.messages, 0
        while (
            len(messages) > len(kept)
            and self._count([*messages, _asked(messages, question)]) > _ROUNDS_SHARE * glm.max_length
        ):
            next_round = [i for i, message in enumerate(messages) if i and message["role"] == "user"]
            messages = messages[next_round[0] :] if next_round else []
            dropped += 1
        self._turn_start = max(self._turn_start - (len(self.messages) - len(messages)), 0)
        self.messages = messages
        return dropped

    def _pending_round(self) -> list[Message]:
        """The round whose call waits for its result; empty where none does."""
        if not _waits(self.messages):
            return []
        begun = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        return self.messages[begun[-1] :] if begun else self.messages

    def check(self, system: str | None, messages: list[Message]) -> None:
        """Raise InputError unless the model could go on from these messages."""
        self.glm.count_tokens([*_front(system), *messages, _asked(messages, "?")], self.tools)

    def context_tokens(self) -> int:
        """Tokens of ``max_length`` that the conversation takes."""
        if not self.messages:
            return len(self.glm.tokenizer.encode(self.system)) if self.system else 0
        *asked, answer = self.messages
        return self._count(asked) + len(self.glm.tokenizer.encode(answer["content"]))

    def _count(self, messages: list[Message]) -> int:
        return self.glm.count_tokens([*_front(self.system), *messages], self.tools)


def _waits(messages: list[Message]) -> bool:
    """Whether the last message calls a tool, or wants code to be run."""
    return bool(messages) and bool(messages[-1].get("metadata"))


def _asked(before: list[Message], question: str) -> Message:
    """What was typed as a message: after the call of a tool it is the tool's result."""
    return {"role": "observation" if _waits(before) else "user", "content": question}


def _said(reply: Reply, answer: str) -> list[Message]:
    """An answer as messages; only calls that can be read keep the name of what they call."""
    if not (reply.metadata or reply.earlier):
        return [{"role": "assistant", "content": answer}]
    *earlier, last = reply.as_messages()
    if reply.tool_call is None and reply.code is None:
        last = {"role": "assistant", "content": f"{reply.metadata}\n{reply.content}".strip()}
    return [*earlier, last]


def _front(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []
