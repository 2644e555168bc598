"""The official way to multiply with INT4 weights, emulated in torch: the whole matrix to half precision, each time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OfficialLinear(nn.Module):
    """A random matrix, two integers to a byte and a scale for every row; float16 on a GPU, bfloat16 on a CPU."""

    packed: Tensor
    scales: Tensor

    def __init__(self, out_features: int, in_features: int, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
        packed = torch.randint(-128, 128, (out_features, in_features // 2), dtype=torch.int8, device=device)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", torch.full((out_features, 1), 0.004, dtype=dtype, device=device))

    def forward(self, x: Tensor, **options: object) -> Tensor:
        """Return ``x @ dequantize(weight).T``; options of the layer that it takes the place of change nothing."""
        q = torch.stack((self.packed >> 4, self.packed << 4 >> 4), dim=-1).flatten(1)
        dtype = self.scales.dtype
        return F.linear(x.to(dtype), q.to(dtype) * self.scales)
