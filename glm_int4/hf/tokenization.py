"""The package's tokenizers behind transformers' interface; ids are those of ``glm_int4.text``.

Special tokens that stand in a text are plain text, as everywhere in the package. To have them found, for
example ``[MASK]`` in version 1, pass ``split_special_tokens=False``.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer
from transformers.utils.chat_template_utils import get_json_schema

from glm_int4.errors import InputError, TokenizerError
from glm_int4.hf.official_prompts import OfficialPrompts
from glm_int4.text import Tokenizer, chat_format, load_tokenizer
from glm_int4.text.added_tokens import OFFICIAL, AddedToken, AddedTokens
from glm_int4.text.chat.messages import Message
from glm_int4.text.continued import encode_open
from glm_int4.text.tokenizer_loading import FAST_FILE, V1_FILE, V2_FILE

_V1_SPECIAL = {
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "[MASK]",
    "gmask_token": "[gMASK]",
    "end_token": "</s>",
}
_V2_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
_V4_SPECIAL = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_SPECIAL = {"1": _V1_SPECIAL, "2": _V2_SPECIAL, "3": _V2_SPECIAL, "4": _V4_SPECIAL}


class ChatGLMTokenizer(OfficialPrompts, PreTrainedTokenizer):
    """Tokenizer of every version.

    Args:
        ice_text_file, vocab_file: ``ice_text.model`` (version 1) or ``tokenizer.model`` (2 to 4).
        tokenizer_file: ``tokenizer.json``, which version 4 may have in its place.
        model_version: "auto", "1", "2", "3" or "4"; "auto" goes by the files beside the tokenizer's.
        add_bos_token: in version 1, where a prompt ends with [gMASK] and ``<sop>``, put the two in front of
            a text instead: it is then one to be continued or scored, as a perplexity is measured. The
            other versions' prompts begin with them anyway.
        text_first: the same; transformers 5 does not save the former.
        others: as transformers defines them; special tokens are the model's and cannot be changed.
    """

    vocab_files_names = {"ice_text_file": V1_FILE, "vocab_file": V2_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | None = None,
        ice_text_file: str | None = None,
        model_version: str = "auto",
        add_bos_token: bool = False,
        text_first: bool = False,
        tokenizer_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        file = ice_text_file or vocab_file or tokenizer_file
        if file is None:
            raise TokenizerError(
                f"expected {V1_FILE}, {V2_FILE} or {FAST_FILE} beside the weights, got none; "
                "copy it from the official repository"
            )
        self._file, self.text_first = Path(file), bool(add_bos_token or text_first)
        self.inner: Tokenizer = load_tokenizer(self._file.parent, model_version)
        pieces = ((index, self.inner.id_to_piece(index)) for index in range(self.inner.vocab_size))
        self._ids = {piece: index for index, piece in pieces if piece}
        self._unknown = self._ids.get("<unk>", self.inner.pad_id)
        special, extra = _SPECIAL[self.inner.version], self.inner.special_names
        kept = {key: value for key, value in kwargs.items() if not key.endswith(("_token", "special_tokens"))}
        kept["split_special_tokens"] = kwargs.get("split_special_tokens", True)
        kept["model_version"] = self.inner.version  # saved, since versions 2 and 3 share their file
        kept["text_first"] = self.text_first
        self._is_complete = False  # until the special tokens have been named, which are no new ones
        super().__init__(**kept, **special, extra_special_tokens=list(extra))
        self._is_complete = True

    @property
    def version(self) -> str:
        """Of the model: "1", "2", "3" or "4"."""
        return self.inner.version

    @property
    def vocab_size(self) -> int:
        """Number of ids that stand for something; the model has more rows."""
        return self.inner.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Ids by piece."""
        return dict(self._ids)

    def _add_tokens(self, new_tokens: Sequence[Any], special_tokens: bool = False) -> int:
        """Take tokens in as fine-tuning does: each is one id, behind those that are there.

        Raises:
            InputError: an official special token of another version.
        """
        if not self._is_complete:
            return super()._add_tokens(list(new_tokens), special_tokens=special_tokens)
        taken = list(self.inner.added.tokens)
        first = self.inner.vocab_size
        for token in new_tokens:
            text = str(token)
            if text in self._ids or not text:
                continue
            if text in OFFICIAL:
                raise InputError(f"expected a token of your own, got {text!r}, which another version has; take another")
            self._ids[text] = first + len(taken) - len(self.inner.added.tokens)
            sides = (getattr(token, side, False) for side in ("lstrip", "rstrip"))
            taken.append(AddedToken(text, self._ids[text], *sides))
        num_new = len(taken) - len(self.inner.added.tokens)
        self.inner.added = AddedTokens(taken)
        super()._add_tokens(list(new_tokens), special_tokens=special_tokens)
        return num_new

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self.inner.id_to_piece(index) for index in self.inner.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._unknown)

    def _convert_id_to_token(self, index: int) -> str:
        return self.inner.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces."""
        return self.inner.decode(self._convert_token_to_id(token) for token in tokens)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Text of ids. As officially, versions 3 and 4 spell special ids out, unless they are to be skipped.

        A special id alone has its name in every version: programs ask so for the text that ends an answer.
        """
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        if skip_special_tokens and self.inner.added.tokens:
            special = set(self.all_special_ids)
            ids = [index for index in ids if index not in special]
        if skip_special_tokens or (not self.inner.role_ids and len(ids) != 1):
            return self.inner.decode(ids)
        return self._spell(ids, self.inner.encode("a"))

    def _spell(self, ids: list[int], lead: list[int]) -> str:
        """Text of ids with the special ones spelled out.

        A run of text loses the space that SentencePiece puts in front of it, unless ``lead``, the ids of a
        character, stands there while it is decoded.
        """
        special, first = set(self.all_special_ids), len(self.inner.decode(lead))
        text, run = "", list[int]()
        for index in ids:
            if index in special:
                text += self.inner.decode([*(lead if text else ()), *run])[first if text else 0 :] if run else ""
                text, run = text + self.inner.id_to_piece(index), []
            else:
                run.append(index)
        return text + self.inner.decode([*(lead if text else ()), *run])[first if text else 0 :]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Ids of a prompt; a second text is its answer, with the id that ends it.

        Nothing is added to ids that are a prompt already, as those of ``apply_chat_template``'s text are.
        """
        inner = self.inner
        if inner.sop_id in token_ids_0:
            ids = list(token_ids_0)
        elif self.text_first:
            ids = [inner.gmask_id, inner.sop_id, *token_ids_0]
        else:
            ids = [*inner.prefix_ids, *token_ids_0, *inner.suffix_ids]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, inner.eos_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for special ids, 0 for those of text."""
        ids = (
            token_ids_0
            if already_has_special_tokens
            else self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        )
        special = set(self.all_special_ids)
        return [int(index in special) for index in ids]

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        tools: Sequence[Any] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Write conversations the official way; see ``glm_int4.text.chat.chat_format``.

        Args:
            conversation: messages, or a list of conversations. One that ends with an answer is closed, as in
                training; with ``continue_final_message`` it is left open. Any other is ready for the answer,
                whatever ``add_generation_prompt`` says.
            tools: definitions, or functions with type hints and docstrings (versions 3 and 4).
            chat_template: a Jinja template to use instead.
            tokenize: False for text with the special pieces spelled out, which a tokenizer with
                ``split_special_tokens=False`` turns into the same ids (without ``add_special_tokens``).
            others: as in transformers.
        Raises:
            InputError: a conversation that the version cannot take.
        """
        options: dict[str, Any] = {"padding": padding, "max_length": max_length, "return_tensors": return_tensors}
        if chat_template is not None:
            options |= {"tokenize": tokenize, "truncation": truncation, "return_dict": return_dict}
            options["continue_final_message"] = continue_final_message
            options["tools"] = None if tools is None else list(tools)
            return super().apply_chat_template(conversation, chat_template=chat_template, **options, **kwargs)
        if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
            raise InputError(f"expected a list of messages, got {conversation!r:.80}")
        several = isinstance(conversation[0], list | tuple) or hasattr(conversation[0], "messages")
        schemas = [get_json_schema(tool) if callable(tool) else tool for tool in tools or ()]
        rows = [
            self._chat_ids(getattr(chat, "messages", chat), schemas, continue_final_message)
            for chat in (conversation if several else [conversation])
        ]
        if not tokenize:
            texts = [self._spell(row, []) for row in rows]
            return texts if several else texts[0]
        if truncation:
            limit = max_length or self.model_max_length
            rows = [self.truncate_sequences(row, num_tokens_to_remove=len(row) - limit)[0] for row in rows]
        ids: Any = rows if several or return_tensors else rows[0]
        encoded = self.pad({"input_ids": ids}, **options)
        return encoded if return_dict else encoded["input_ids"]

    def _chat_ids(self, messages: Sequence[Message], tools: Sequence[Any], continued: bool) -> list[int]:
        """Ids of one conversation."""
        chat = chat_format(self.version)
        last = messages[-1] if messages else {}
        if not isinstance(last, Mapping) or last.get("role") != "assistant":
            return chat.encode(self.inner, messages, tools or None)
        answer = f"{last.get('metadata') or ''}\n" if self.inner.role_ids else ""
        ids = chat.encode(self.inner, messages[:-1], tools or None)
        ids += self.inner.encode(answer)
        content = str(last.get("content", ""))
        if continued:
            return ids + encode_open(self.inner, content)
        return [*ids, *self.inner.encode(content), self.inner.eos_id]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the tokenizer's file."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{self._file.name}"
        if target.resolve() != self._file.resolve():
            shutil.copyfile(self._file, target)
        return (str(target),)


class ChatGLM4Tokenizer(ChatGLMTokenizer):
    """The same under the name that GLM-4's files give."""
