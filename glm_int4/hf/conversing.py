"""``chat`` and ``stream_chat`` as the official models have them, each version with its own arguments and history.

Prompts and answers are the text room's; ``generate`` of transformers picks the tokens, so that adapters take part.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from glm_int4.errors import InputError
from glm_int4.hf.official_prompts import History, as_messages
from glm_int4.text import Tokenizer
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.replies import Reply

_SAMPLING: dict[str, dict[str, Any]] = {
    "1": {"max_length": 2048, "do_sample": True, "top_p": 0.7, "temperature": 0.95},
    "2": {"max_length": 8192, "do_sample": True, "top_p": 0.8, "temperature": 0.8},
}
_SAMPLING["3"] = _SAMPLING["4"] = _SAMPLING["2"]
# What follows the history where arguments have no names.
_CHAT = ("max_length", "num_beams", "do_sample", "top_p", "temperature", "logits_processor")
_PAST = ("past_key_values",)
_STREAM = ("max_length", "do_sample", "top_p", "temperature", "logits_processor", "return_past_key_values")
_ORDER = {
    ("1", "chat"): _CHAT,
    ("2", "chat"): _CHAT,
    ("3", "chat"): ("role", *_CHAT),
    ("1", "stream_chat"): _STREAM[:-1],
    ("2", "stream_chat"): (*_PAST, *_STREAM),
    ("3", "stream_chat"): ("role", *_PAST, *_STREAM),
}
_ORDER |= {("4", name): _ORDER["3", name] for name in ("chat", "stream_chat")}


class Conversing:
    """The official conversations, for a model of transformers."""

    engine: Any
    generate: Any
    _engine: Any

    def chat(
        self, tokenizer: Any, query: str, history: History | None = None, *arguments: Any, **options: Any
    ) -> tuple[Any, History]:
        """Answer a question.

        Args:
            tokenizer: of the same version.
            query: the question; from version 3 on a message of ``role``.
            history: what was said: pairs of question and answer; from version 3 on messages.
            arguments, options: in the order of the official code of the version: from version 3 on ``role`` ("user"
                or "observation"); ``max_length``, ``num_beams``, ``do_sample``, ``top_p``, ``temperature``,
                ``logits_processor``; and all others of ``generate``.
        Returns:
            The answer and the new history; the one that was given stays as it is. From version 3 on the call of a tool
            is ``{"name": ..., "parameters": {...}}``, or has "content" instead where no tools were given.
        Raises:
            InputError: a question or a history that the version cannot take.
        """
        role, inputs, settings = self._prepare("chat", tokenizer, query, history, arguments, options)
        ids = self.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :].tolist()
        return _finish(tokenizer, query, history, role, ids)

    def stream_chat(
        self, tokenizer: Any, query: str, history: History | None = None, *arguments: Any, **options: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a question, and yield the answer so far and its history each time it has grown.

        Arguments are those of ``chat`` without ``num_beams``; from version 2 on also ``past_key_values``, which are
        computed anew from the history, and ``return_past_key_values``, with which None is yielded beside the history.
        What is yielded last is what ``chat`` returns.
        """
        role, inputs, settings = self._prepare("stream_chat", tokenizer, query, history, arguments, options)
        settings.pop("past_key_values", None)
        rest = (None,) if settings.pop("return_past_key_values", False) else ()
        chat, ids, text = chat_format(tokenizer.version), list[int](), ""
        decoder, stream = chat.reply_decoder(tokenizer.inner), chat.response_stream()
        for token in _generated_ids(self.generate, inputs | settings):
            ids.append(token)
            if token not in tokenizer.inner.stop_ids and (piece := stream.push(decoder.push(token))):
                text += piece
                yield (text, _extended(tokenizer.inner, history, query, role, text, [{"content": text}]), *rest)
        yield (*_finish(tokenizer, query, history, role, ids), *rest)

    def _prepare(
        self, name: str, tokenizer: Any, query: str, history: Any, arguments: Any, options: dict[str, Any]
    ) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
        """The role of the question, the prompt and what ``generate`` gets."""
        version = self._engine.config.version
        if getattr(tokenizer, "version", None) != version:
            raise InputError(
                f"expected the tokenizer of version {version}, got {type(tokenizer).__name__} of "
                f"{getattr(tokenizer, 'version', 'another kind')}; load it with AutoTokenizer from the model's folder"
            )
        order = _ORDER[version, name]
        if len(arguments) > len(order):
            raise InputError(f"expected at most {3 + len(order)} arguments of {name}, got {3 + len(arguments)}")
        settings = _SAMPLING[version] | dict(zip(order, arguments, strict=False)) | options
        role = settings.pop("role", "user") if tokenizer.inner.role_ids else "user"
        if not settings["do_sample"]:
            settings = {key: value for key, value in settings.items() if key not in ("top_p", "temperature")}
        settings["logits_processor"] = settings.pop("logits_processor", None) or []
        messages = as_messages(tokenizer.inner, query, history, role)
        return role, dict(tokenizer.apply_chat_template(messages, return_tensors="pt")), settings


def _finish(tokenizer: Any, query: str, history: Any, role: str, ids: list[int]) -> tuple[Any, History]:
    """Answer and history of all the ids of an answer."""
    chat, inner = chat_format(tokenizer.version), tokenizer.inner
    ids = ids[:-1] if ids and ids[-1] in inner.stop_ids else ids
    decoder = chat.reply_decoder(inner)
    text = "".join([*map(decoder.push, ids), decoder.finish()])
    tools = _tools(history) if inner.role_ids else None
    reply = chat.parse_reply(text, tools)
    new = _extended(inner, history, query, role, reply.content, reply.as_messages())
    return _response(reply, tools), new


def _tools(history: Any) -> Any:
    """The tools of a conversation's first message."""
    first = history[0] if history else {}
    return first.get("tools") if first.get("role") == "system" else None


def _response(reply: Reply, tools: Any) -> Any:
    """What ``chat`` returns of a reply: a text, or a call as officially."""
    if not reply.metadata.strip():
        return reply.content
    name = reply.metadata.strip()
    if tools and reply.tool_call is not None:
        return {"name": name, "parameters": reply.tool_call.arguments}
    return {"name": name, "content": reply.content}


def _extended(
    tokenizer: Tokenizer, history: Any, query: str, role: str, response: str, answer: list[dict[str, Any]]
) -> History:
    """The history with a question and its answer, which from version 3 on may be several messages."""
    if not tokenizer.role_ids:
        return [*(history or ()), (query, response)]
    messages = [{"role": "assistant", "metadata": "", **message} for message in answer]
    return [*(history or ()), {"role": role, "content": query}, *messages]


class _Queue(BaseStreamer):
    """Hands on the ids that ``generate`` picks, without those of the prompt."""

    def __init__(self) -> None:
        self.ids: queue.Queue[int | BaseException | None] = queue.Queue()
        self._skip = True

    def put(self, value: Tensor) -> None:
        """Take the prompt, then one id at a time."""
        for token in () if self._skip else value.flatten().tolist():
            self.ids.put(token)
        self._skip = False

    def end(self) -> None:
        """Nothing: the thread says when it is over."""


def _generated_ids(generate: Any, options: dict[str, Any]) -> Iterator[int]:
    """Run ``generate`` in a thread and yield its ids; it ends early where nobody takes them any more."""
    streamer, left = _Queue(), threading.Event()

    def is_left(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), left.is_set(), device=input_ids.device)

    criteria = StoppingCriteriaList([*options.pop("stopping_criteria", ()), is_left])

    def run() -> None:
        try:
            generate(**options, streamer=streamer, stopping_criteria=criteria)
        except BaseException as error:
            streamer.ids.put(error)
        else:
            streamer.ids.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (found := streamer.ids.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        left.set()
        thread.join()
