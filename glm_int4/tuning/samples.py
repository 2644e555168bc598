"""What a model reads of training data: ids and labels, exactly as the official preprocessing makes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_int4.errors import InputError
from glm_int4.text import Tokenizer
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.messages import Message, is_blank, split_rounds
from glm_int4.text.chat.prompts_v3 import encode_message
from glm_int4.tuning.conversations import Conversation
from glm_int4.tuning.data import Example, Row
from glm_int4.tuning.loss import IGNORED


@dataclass(frozen=True, slots=True)
class Sample:
    """Ids of a question with its answer, and their labels. ``num_cut``: tokens of the answer left out."""

    input_ids: list[int]
    labels: list[int]
    num_cut: int = 0

    @property
    def num_labels(self) -> int:
        """Labels that count."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class Question:
    """Ids of a prompt, and of the answer that the data has, its end included."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class Preparation:
    """How examples become ids: most tokens of a question and of an answer."""

    tokenizer: Tokenizer
    max_source_length: int
    max_target_length: int

    def samples(self, example: Example) -> list[Sample]:
        """What is learnt of an example: nothing where its answers lie behind the most tokens."""
        if isinstance(example, Row):
            return [make_sample(self.tokenizer, example, self.max_source_length, self.max_target_length)]
        check_tools(example, self.tokenizer.version)
        if not self.tokenizer.role_ids:
            return [sample for row in answer_rows(example) for sample in self.samples(row)]
        limit = self.max_source_length + self.max_target_length + 1
        sample = conversation_sample(self.tokenizer, example, limit)
        return [sample] if sample.num_labels else []

    def questions(self, example: Example) -> list[Question]:
        """What a model is asked of an example, with the answers."""
        if isinstance(example, Row):
            prompt = source_ids(self.tokenizer, example, self.max_source_length, training=False)
            return [Question(prompt, target_ids(self.tokenizer, example.response, self.max_target_length)[0])]
        check_tools(example, self.tokenizer.version)
        if not self.tokenizer.role_ids:
            return [question for row in answer_rows(example) for question in self.questions(row)]
        return list(self._turns(example))

    def _turns(self, conversation: Conversation) -> Iterator[Question]:
        """A question for every message that is learnt, with all that came before, cut as officially."""
        ids = list(self.tokenizer.prefix_ids)
        for turn in conversation.turns:
            if len(ids) >= self.max_source_length:
                break
            role, *message = encode_message(self.tokenizer, turn.role, turn.metadata, turn.content)
            if turn.is_learnt:
                answer = [*message, self.tokenizer.eos_id]
                yield Question([*ids, role], answer[: self.max_target_length])
            ids += [role, *message]


def source_ids(tokenizer: Tokenizer, row: Row, max_source_length: int, *, training: bool) -> list[int]:
    """Ids of a question, the special ones included, cut on the right as officially.

    In training, version 1 writes a first round as a numbered one where the data has a history column; asked
    later, a question without rounds before it is bare.
    """
    messages: list[Message] = [{"role": "system", "content": row.system}] if row.system else []
    for question, answer in row.history or ():
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": row.prompt})
    chat = chat_format(tokenizer.version)
    if tokenizer.role_ids:  # the last one is the answer's role, which stays
        ids = chat.encode(tokenizer, messages)
        return ids if len(ids) <= max_source_length else [*ids[: max_source_length - 1], ids[-1]]
    if not tokenizer.suffix_ids:
        return chat.encode(tokenizer, messages)[:max_source_length]
    if training and row.history is not None and not row.history:
        system = f"{row.system}\n" if row.system else ""
        ids = tokenizer.encode(f"{system}[Round 0]\n问：{row.prompt}\n答：")
    else:
        ids = chat.encode(tokenizer, messages)[: -len(tokenizer.suffix_ids)]
    return [*ids[: max_source_length - 1], *tokenizer.suffix_ids]


def target_ids(tokenizer: Tokenizer, response: str, max_target_length: int) -> tuple[list[int], int]:
    """Ids of an answer with its end, and how many of its tokens were cut off."""
    ids = tokenizer.encode(response)
    if tokenizer.role_ids:
        ids = [*tokenizer.encode("\n"), *ids]  # the empty line of metadata that every answer begins with
    kept = ids[: max_target_length - len(tokenizer.suffix_ids)]  # officially, as if the suffix were part of it
    return [*kept, tokenizer.eos_id], len(ids) - len(kept)


def make_sample(tokenizer: Tokenizer, row: Row, max_source_length: int, max_target_length: int) -> Sample:
    """Ids and labels of a row, exactly as the official preprocessing makes them, without the padding."""
    source = source_ids(tokenizer, row, max_source_length, training=True)
    target, num_cut = target_ids(tokenizer, row.response, max_target_length)
    num_ignored = len(source)
    if tokenizer.suffix_ids:
        num_ignored -= 1  # <sop> is learnt too
    ids = source + target
    return Sample(ids, [IGNORED] * num_ignored + ids[num_ignored:], num_cut)


def conversation_sample(tokenizer: Tokenizer, conversation: Conversation, max_length: int) -> Sample:
    """Ids and labels of a conversation with roles, as in the official ``finetune_demo`` of ChatGLM3.

    Learnt is what follows the role of a message that is learnt, up to the id that ends it: the next role, or the end.
    """
    ids, learnt = list(tokenizer.prefix_ids), [False] * len(tokenizer.prefix_ids)
    for turn in conversation.turns:
        message = encode_message(tokenizer, turn.role, turn.metadata, turn.content)
        ids += message
        learnt += [turn.is_learnt] * len(message)
    ids.append(tokenizer.eos_id)
    labels = [token if before else IGNORED for token, before in zip(ids, [False, *learnt], strict=True)]
    return Sample(ids[:max_length], labels[:max_length], max(len(ids) - max_length, 0))


def check_tools(conversation: Conversation, version: str) -> None:
    """Raise InputError where a conversation has tools: they are written as version 3 writes them."""
    if conversation.has_tools and version != "3":
        raise InputError(
            f"expected no tools for version {version} in {conversation.place}, got some; train ChatGLM3-6B"
        )


def answer_rows(conversation: Conversation) -> list[Row]:
    """A row for every answer that is learnt, with the rounds before it: what versions without roles learn.

    Raises:
        InputError: the conversation has roles that are not in turn.
    """
    rows: list[Row] = []
    messages: list[Message] = []
    for turn in conversation.turns:
        if turn.is_learnt and not is_blank(turn.content):
            try:
                system, history, question = split_rounds(messages)
            except InputError as error:
                raise InputError(f"{error} (in {conversation.place})") from error
            rows.append(Row(question, turn.content, tuple(history) or None, system.removesuffix("\n")))
        messages.append({"role": turn.role, "content": turn.content})
    return rows


def collate(samples: Sequence[Sample], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and labels (B, T) of samples, padded on the right."""
    length = max(len(sample.input_ids) for sample in samples)
    ids = [s.input_ids + [pad_id] * (length - len(s.input_ids)) for s in samples]
    labels = [s.labels + [IGNORED] * (length - len(s.labels)) for s in samples]
    return torch.tensor(ids), torch.tensor(labels)
