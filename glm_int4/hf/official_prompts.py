"""What the official tokenizers know of prompts, by their names: ``build_prompt``, ``build_chat_input`` and others."""

from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding

from glm_int4.errors import InputError
from glm_int4.text import Tokenizer, chat_format
from glm_int4.text.chat import prompts_v1, prompts_v2

# Pairs of question and answer, or messages, from version 3 on.
History = list[Any]


def as_messages(
    tokenizer: Tokenizer, query: str, history: Sequence[Any] | None, role: str = "user"
) -> list[dict[str, Any]]:
    """The messages of an official history and of the question that follows it.

    Raises:
        InputError: the history is another version's.
    """
    messages: list[dict[str, Any]] = []
    version = tokenizer.version
    for entry in history or ():
        if tokenizer.role_ids:
            if not isinstance(entry, dict):
                raise InputError(
                    f"expected a history of messages for version {version}, got {entry!r:.80}; pass dicts with role"
                )
            messages.append(entry)
        elif isinstance(entry, tuple | list) and len(entry) == 2:
            messages += [{"role": "user", "content": entry[0]}, {"role": "assistant", "content": entry[1]}]
        else:
            raise InputError(f"expected a history of (question, answer) for version {version}, got {entry!r:.80}")
    return [*messages, {"role": role, "content": query}]


class OfficialPrompts:
    """Methods of the official tokenizers, for the tokenizer of transformers."""

    inner: Tokenizer
    pad: Any

    def build_prompt(self, query: str, history: Sequence[Any] | None = None) -> str:
        """The text of versions 1 and 2 that asks a question after a history of pairs."""
        if self.inner.role_ids:
            raise InputError(
                f"expected version 1 or 2 for build_prompt, got {self.inner.version}, whose prompt is no text; use "
                "build_chat_input"
            )
        build = prompts_v1.build_prompt if self.inner.version == "1" else prompts_v2.build_prompt
        return build(as_messages(self.inner, query, history))

    def build_chat_input(self, query: str, history: Sequence[Any] | None = None, role: str = "user") -> BatchEncoding:
        """The inputs of versions 3 and 4, one row, that ask a question after a history of messages."""
        self._only_3("build_chat_input", "tokenizer(tokenizer.build_prompt(query, history), return_tensors='pt')")
        ids = chat_format(self.inner.version).encode(self.inner, as_messages(self.inner, query, history, role))
        return self.pad({"input_ids": [ids]}, return_tensors="pt")

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """The ids of one message of versions 3 and 4."""
        self._only_3("build_single_message", "build_prompt")
        if role not in self.inner.role_ids:
            raise InputError(f"expected a role of {', '.join(self.inner.role_ids)}, got {role!r:.80}")
        return [self.inner.role_ids[role], *self.inner.encode(f"{metadata}\n"), *self.inner.encode(message)]

    def get_command(self, token: str) -> int:
        """The id of a special token by its name."""
        return self.inner.piece_id(token)

    def get_prefix_tokens(self) -> list[int]:
        """What every prompt of versions 2 to 4 begins with."""
        return self.inner.prefix_ids

    def _only_3(self, name: str, instead: str) -> None:
        if not self.inner.role_ids:
            raise InputError(f"expected version 3 or 4 for {name}, got {self.inner.version}; use {instead}")
