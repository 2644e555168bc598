"""A half-precision checkpoint's network in float32, with the weights of one layer in memory at a time.

GPTQ (``gptq_pass.py``) and the choice of bits (``mixed/sensitivity.py``) look at calibration text with it: all
activations run through a layer before the next layer is read. It does not answer; that is ``generation``'s.
"""

import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.checkpoint.checks import check_finite
from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.conversion.folding import Folding
from glm_int4.errors import OutputError
from glm_int4.models import make_model
from glm_int4.models.past import AttentionMask
from glm_int4.quantization.embedding import DenseEmbedding
from glm_int4.system import size_text

# Activations beyond so many bytes lie in a file.
MAX_ACTIVATION_BYTES = 512 << 20


class StreamedLinear(nn.Module):
    """A linear layer whose weight (N, K) float32 comes and goes; ``tap``, if set, sees every input first."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.tap: Callable[[Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), after the tap has seen x."""
        if self.tap is not None:
            self.tap(x)
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)


class StreamedModel:
    """The network of an opened half-precision checkpoint.

    Attributes:
        linears: every matrix but the embedding, by name.
        layer_linears: names of a layer's matrices, in the order in which they run.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        info: CheckpointInfo,
        folding: Folding | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folding = folding or Folding()
        self.reader, self.config, self.device = reader, info.config, torch.device(device)
        self.linears: dict[str, StreamedLinear] = {}
        self.layer_linears: list[list[str]] = [[] for _ in range(info.config.num_layers)]
        for i, matrix in enumerate(layout.linears(info.config)):
            self.layer_linears[i // 4].append(matrix.name)
        embeddings = DenseEmbedding(info.config.vocab_size, info.config.hidden_size, device="meta")
        self.model = make_model(info.config, self._make_linear, embeddings)
        self._layers = list(self.model.layers)
        for name, module in self.model.named_modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                for part, _ in list(module.named_parameters()):
                    setattr(module, part, nn.Parameter(self._read(f"{name}.{part}"), requires_grad=False))

    def _make_linear(self, name: str, in_features: int, out_features: int, has_bias: bool) -> nn.Module:
        linear = self.linears[name] = StreamedLinear(name)
        if has_bias:
            linear.bias = self._read(f"{name}.bias")
        return linear

    def _read(self, name: str) -> Tensor:
        weight = self.reader.rows(name)
        check_finite(name, weight)
        weight = weight.to(device=self.device, dtype=torch.float32, copy=True)
        weight = self.folding.fold(name, weight)
        self.reader.release(name)
        return weight

    def load_layer(self, index: int) -> None:
        """Read the matrices of one layer."""
        for name in self.layer_linears[index]:
            self.linears[name].weight = self._read(f"{name}.weight")

    def drop_layer(self, index: int) -> None:
        """Forget the matrices of one layer."""
        for name in self.layer_linears[index]:
            self.linears[name].weight = None

    def embed(self, token_ids: Sequence[int], weight: Tensor | None = None) -> Tensor:
        """Rows of the embedding, or of another matrix in its place: (T, hidden_size) float32."""
        name, ids = f"{layout.embedding(self.config).name}.weight", torch.tensor(token_ids)
        rows = self.reader.rows(name, ids) if weight is None else weight[ids]
        return rows.to(self.device, torch.float32)

    @torch.inference_mode()
    def run_layer(self, index: int, x: Tensor, token_ids: Sequence[int]) -> Tensor:
        """The output of a layer that has been loaded; x and the output are (T, hidden_size)."""
        ids = list(token_ids)
        positions = self.model.positions(ids)
        rotary = self.model.rotary(torch.tensor([positions.ids], device=self.device))
        mask = AttentionMask(context_length=positions.context_length)
        out: Tensor = self._layers[index](x[None], rotary, mask, None)
        return out[0]

    @torch.inference_mode()
    def normalize(self, x: Tensor) -> Tensor:
        """The final norm of (T, hidden_size): the input of the head."""
        out: Tensor = self.model.norm(x)
        return out


class Activations:
    """Tensors of one shape each, in memory, or in an unnamed file where they are many.

    Args:
        folder: where the file would lie.
        num_bytes: of all tensors that will be there at once.
    Raises:
        OutputError: the file cannot be written, here or later.
    """

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self._tensors: dict[int, Tensor] = {}
        self._places: dict[int, tuple[int, tuple[int, ...], torch.device]] = {}
        self._file = None
        self._folder, self._num_bytes = folder, num_bytes
        if num_bytes > MAX_ACTIVATION_BYTES:
            with self._named():
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with this object
            weakref.finalize(self, _close, self._file)
        self._end = 0

    @property
    def on_disk(self) -> bool:
        """Whether the tensors lie in a file."""
        return self._file is not None

    def __setitem__(self, index: int, x: Tensor) -> None:
        if self._file is None:
            self._tensors[index] = x
            return
        if index not in self._places:
            self._places[index] = (self._end, tuple(x.shape), x.device)
            self._end += x.numel() * 4
        with self._named():
            self._file.seek(self._places[index][0])
            self._file.write(x.float().cpu().contiguous().numpy().tobytes())

    def __getitem__(self, index: int) -> Tensor:
        if self._file is None:
            return self._tensors[index]
        start, shape, device = self._places[index]
        data = bytearray(4 * torch.Size(shape).numel())
        with self._named():
            self._file.seek(start)  # which writes what is still in the buffer
            self._file.readinto(data)
        return torch.frombuffer(data, dtype=torch.float32).view(shape).to(device)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"expected {size_text(self._num_bytes)} of room for activations in {self._folder}, got: "
                f"{error.strerror or error}; free some space or choose another disk"
            ) from error


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # what could not be written cannot be flushed either
        file.close()
