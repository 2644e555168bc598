"""What every tokenizer of the house can do, whatever the model version."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

from glm_int4.text.added_tokens import AddedTokens
from glm_int4.text.sentencepiece_model import ModelSpec


class Tokenizer(Protocol):
    """Text to ids and back; special tokens that a user types are plain text.

    Attributes:
        version: "1", "2", "3" or "4".
        added: tokens that fine-tuning has added.
        pad_id, eos_id, mask_id, gmask_id: special ids.
        sop_id: the id after which the answer (v1) or the text (v2 to v4) starts; ``bos_id`` is the same.
        stop_ids: the ids that end an answer.
        prefix_ids, suffix_ids: what stands around a prompt's text; one of the two is empty.
        role_ids: ids of the roles in a conversation by name; v3 and v4 alone have any.
        spec: how the model treats white space.
        longest_piece: characters that an id stands for at most.
        rewritten: texts that ``decode`` turns into white space, whichever pieces spell them; v1 alone has any.
    """

    version: str
    pad_id: int
    eos_id: int
    mask_id: int
    gmask_id: int
    sop_id: int
    bos_id: int
    added: AddedTokens
    spec: ModelSpec
    rewritten: tuple[str, ...]
    longest_piece: int

    @property
    def vocab_size(self) -> int:
        """Number of ids that stand for something."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""

    @property
    def prefix_ids(self) -> list[int]:
        """What every prompt begins with."""

    @property
    def suffix_ids(self) -> list[int]:
        """What every prompt ends with."""

    @property
    def role_ids(self) -> dict[str, int]:
        """Ids of the roles by name; empty but for versions 3 and 4."""

    @property
    def special_names(self) -> tuple[str, ...]:
        """Names of the special ids behind the pieces; none in version 1, where they are pieces."""

    def piece_id(self, piece: str) -> int:
        """Id of a piece by its name; raises TokenizerError where there is none."""

    def id_to_piece(self, token_id: int) -> str:
        """Name of a piece; empty for ids without one."""

    def piece_bytes(self) -> list[bytes]:
        """What every id below ``vocab_size`` adds behind other text; empty for special and added ones."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no special ones added."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special ones are left out."""

    def may_change(self, text: str) -> bool:
        """Whether ids that follow may change the end of a text that ``decode`` gave: it ends in half a character."""

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text as a prompt, special ones added."""


class PrefixedPrompts(ABC):
    """What the tokenizers of versions 2 to 4 share: [gMASK] and sop stand in front of a prompt's text."""

    gmask_id: int
    sop_id: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """As of ``Tokenizer``."""

    @property
    def prefix_ids(self) -> list[int]:
        """As of ``Tokenizer``: [gMASK], sop."""
        return [self.gmask_id, self.sop_id]

    @property
    def suffix_ids(self) -> list[int]:
        """As of ``Tokenizer``: nothing."""
        return []

    def may_change(self, text: str) -> bool:
        """As of ``Tokenizer``."""
        return text.endswith("\ufffd")

    def encode_prompt(self, text: str) -> list[int]:
        """As of ``Tokenizer``: a context to go on from."""
        return [self.gmask_id, self.sop_id, *self.encode(text)]
