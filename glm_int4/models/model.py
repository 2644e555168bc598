"""What the networks of all versions have in common: their parts, and how tokens run through them."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glm_int4.models.config import Config
from glm_int4.models.cpu_step import FusedLayers
from glm_int4.models.kv_cache import KVCache, RunningRows
from glm_int4.models.layer import Layer, run_twice
from glm_int4.models.past import AttentionMask, Past
from glm_int4.quantization.adapted import AdapterChoice
from glm_int4.quantization.embedding import DenseEmbedding, TokenEmbedding


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the tokens of one unpadded sequence are.

    Attributes:
        ids: P kinds of position, each of the sequence's length; P is the config's ``position_kinds``.
        next: P positions of the token that will follow; of those behind it, only the last kind grows.
        context_length: leading tokens that see each other, whatever their order.
    """

    ids: list[list[int]]
    next: list[int]
    context_length: int


class Model(nn.Module, ABC):
    """A language model of any version; what differs is a value of its config, or a method below.

    Attributes:
        config: shape and special tokens.
        transformer: its modules, under their official names.
        choice: which adapter the rows of what runs now have.
    """

    config: Config
    transformer: nn.Module
    runs_ahead = False  # of a ``Stepper``

    def __init__(self) -> None:
        super().__init__()
        self.choice = AdapterChoice()

    @property
    @abstractmethod
    def embedding(self) -> TokenEmbedding:
        """Ids (...) to (..., hidden_size)."""

    @property
    @abstractmethod
    def layers(self) -> Iterable[Layer]:
        """All layers, in order."""

    @property
    @abstractmethod
    def norm(self) -> nn.Module:
        """The final norm."""

    @abstractmethod
    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for positions (B, P, T), as the layers take them: (B, T, 1, ..., D / 4) float32."""

    @abstractmethod
    def head(self, x: Tensor) -> Tensor:
        """Project (..., hidden_size) onto the vocabulary: (..., V) float32."""

    @abstractmethod
    def replace_embedding(self, embedding: DenseEmbedding) -> None:
        """Look ids up in another matrix (V, hidden_size); the head stays what it is."""

    @abstractmethod
    def replace_head(self, head: nn.Module) -> None:
        """Project with another matrix (V, hidden_size); the embedding stays what it is."""

    @abstractmethod
    def positions(self, token_ids: list[int]) -> Positions:
        """Positions of one unpadded sequence."""

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        mask: AttentionMask,
        past: Past = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, T, V) float32 of T new tokens; arguments as of ``last_hidden_state``."""
        return self.head(self.last_hidden_state(token_ids, positions, mask, past, hidden_states))

    def last_hidden_state(
        self,
        token_ids: Tensor,
        positions: Tensor,
        mask: AttentionMask,
        past: Past = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Run T new tokens through all layers and the final norm.

        Args:
            token_ids: (B, T) int64.
            positions: (B, P, T) int64; see ``positions``.
            mask: who sees whom; see ``get_masks``.
            past: keys and values of earlier tokens, extended in place; or a prefix alone.
            hidden_states: if given, receives the input of every layer and the output of the last one, which is
                taken behind the final norm in version 1.
        Returns:
            (B, T, hidden_size).
        """
        x, rotary = self.embedding(token_ids), self.rotary(positions)
        if token_ids.shape[1] == 1 and hidden_states is None and (fused := self._fused(x, mask, past)):
            x = fused.decode(x, rotary, mask, past, self.choice.of_rows(len(x)))  # type: ignore[arg-type]
        else:
            twice = getattr(past, "recompute", False) and torch.is_grad_enabled()
            for layer in self.layers:
                if hidden_states is not None:
                    hidden_states.append(x)
                x = run_twice(layer, x, rotary, mask, past) if twice else layer(x, rotary, mask, past)
        if isinstance(past, KVCache):
            past.advance(token_ids.shape[1])
        normed: Tensor = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(normed if self.config.hidden_states_end_normed else x)
        return normed

    def step(self, tokens: Tensor, positions: Tensor, cache: KVCache | RunningRows) -> Tensor:
        """Feed a token a row to a cache; as of ``generation.cuda_graphs.Stepper``."""
        mask = AttentionMask(padding=cache.padding, prefix_length=cache.prefix_length)
        return self.head(self.last_hidden_state(tokens[:, None], positions[..., None], mask, cache))[:, 0]

    def _fused(self, x: Tensor, mask: AttentionMask, past: Past) -> FusedLayers | None:
        """All layers as one compiled function, where the backend has it and takes these inputs."""
        return self._fused_layers if FusedLayers.take(x, mask, past) else None

    @functools.cached_property
    def _fused_layers(self) -> FusedLayers | None:
        fits = FusedLayers.fit(self.layers)
        return FusedLayers(self.layers, self.config, self.choice.count) if fits else None

    def forget_fused(self) -> None:
        """Let the next step see modules that have been exchanged."""
        self.__dict__.pop("_fused_layers", None)
        self.choice.changes += 1

    def get_position_ids(self, token_ids: list[int]) -> list[list[int]]:
        """The ``ids`` of ``positions``."""
        return self.positions(token_ids).ids

    def context_length(self, token_ids: list[int]) -> int:
        """The ``context_length`` of ``positions``."""
        return self.positions(token_ids).context_length

    def get_masks(self, rows: list[list[int]], device: torch.device | str = "cpu") -> Tensor:
        """Official mask (B, 1, T, T), True = masked, of left-padded rows of T = the longest one's tokens."""
        length = max(map(len, rows))
        mask = torch.ones(len(rows), length, length, dtype=torch.bool)
        for row, token_ids in zip(mask, rows, strict=True):
            pad = length - len(token_ids)
            row.triu_(1)
            row[:, pad : pad + self.context_length(token_ids)] = False
            row[:, :pad] = True
            row[:pad] = True
        return mask[:, None].to(device)
