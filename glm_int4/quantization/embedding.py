"""The embedding matrix, which is also the head where the two are tied."""

import torch.nn.functional as F
from torch import Tensor, nn


class DenseEmbedding(nn.Embedding):
    """An unquantized embedding of shape (V, hidden_size)."""

    def project(self, x: Tensor) -> Tensor:
        """``x @ weight.T`` in the weight's dtype, returned as float32."""
        return F.linear(x.to(self.weight.dtype), self.weight).float()


class QuantizedEmbedding(nn.Module):
    pass
