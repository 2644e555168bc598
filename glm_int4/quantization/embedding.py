"""The embedding matrix, which is also the head where the two are tied."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.backends import QuantizedMatrix, make_matrix
from glm_int4.quantization.gpu.matrix import HostMatrix, ReferenceMatrix
from glm_int4.quantization.host_rows import HostRows
from glm_int4.quantization.scheme import QuantizedWeight

# Looked up at a time: dequantizing takes a dozen bytes a value.
_ROWS = 128


class DenseEmbedding(nn.Embedding):
    """An unquantized embedding of shape (V, hidden_size)."""

    def project(self, x: Tensor) -> Tensor:
        """``x @ weight.T`` in the weight's dtype, returned as float32: (..., V)."""
        return F.linear(x.to(self.weight.dtype), self.weight).float()


class HostEmbedding(nn.Module):
    """An unquantized embedding (V, hidden_size) that stays in the host's memory, for rows on a device."""

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        super().__init__()
        self._rows = HostRows(weight, device)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Rows of ids: (...) to (..., hidden_size)."""
        return self._rows[token_ids.flatten()].view(*token_ids.shape, -1)


class QuantizedEmbedding(nn.Module):
    """An embedding with INT8 or INT4 rows, kept in one layout for looking up and projecting.

    Args:
        weight: the quantized matrix (V, hidden_size).
        backend: one of ``backends.BACKENDS``.
        dtype: of the looked-up rows.
        host_for: a device whose rows come from the host's memory, where the integers stay. Then there is no projecting.
    """

    def __init__(
        self, weight: QuantizedWeight, backend: str, dtype: torch.dtype, host_for: torch.device | None = None
    ) -> None:
        super().__init__()
        self.matrix: QuantizedMatrix = (
            make_matrix(weight, None, backend) if host_for is None else HostMatrix(weight, host_for)
        )
        self.scheme, self.dtype = weight.scheme, dtype

    def forward(self, token_ids: Tensor) -> Tensor:
        """Rows of ids: (...) to (..., hidden_size)."""
        ids = token_ids.flatten()
        if len(ids) <= _ROWS:
            rows = self.matrix.dequantize(ids).to(self.dtype)
        else:
            rows = torch.empty(len(ids), self.matrix.in_features, dtype=self.dtype, device=ids.device)
            for out, part in zip(rows.split(_ROWS), ids.split(_ROWS), strict=True):
                out.copy_(self.matrix.dequantize(part))
        return rows.view(*token_ids.shape, -1)

    def project(self, x: Tensor) -> Tensor:
        """``x @ weight.T`` accumulated and returned in float32: (..., V)."""
        if isinstance(self.matrix, ReferenceMatrix):
            out: Tensor = self.matrix(x, out_dtype=torch.float32)
            return out
        return self.matrix(x)


# What turns ids into rows; only the first two can be a head too.
TokenEmbedding = DenseEmbedding | QuantizedEmbedding | HostEmbedding
