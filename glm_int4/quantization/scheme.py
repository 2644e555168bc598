"""How a matrix is quantized, and the quantized matrix itself."""

from dataclasses import dataclass

from torch import Tensor

from glm_int4.errors import InputError

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationScheme:
    """Weight-only integer quantization along the input dimension.

    ``group_size`` weights of a row share a scale; None means the whole row (per channel).
    """

    bits: int
    group_size: int | None
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"expected bits to be 4 or 8, got {self.bits}")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise InputError(f"expected a group size of 32, 64, 128 or channel, got {self.group_size}")

    @property
    def zero(self) -> int:
        """The unsigned integer that stands for 0 where there is no zero point."""
        return 1 << (self.bits - 1)

    def row_group_size(self, in_features: int) -> int:
        """Weights per scale in a row of ``in_features``."""
        return in_features if self.group_size is None else self.group_size

    def __str__(self) -> str:
        groups = "per channel" if self.group_size is None else f"group {self.group_size}"
        return f"INT{self.bits} {groups} {'symmetric' if self.symmetric else 'asymmetric'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A quantized (N, K) matrix: ``w = (q - zero_point) * scale``.

    packed: uint8 (N, K * bits // 8); 4 bits: even k in the low nibble.
    scales: float16 (N, K // group_size).
    zero_points: uint8, same shape, or None where the scheme is symmetric.
    """

    scheme: QuantizationScheme
    packed: Tensor
    scales: Tensor
    zero_points: Tensor | None

    @property
    def out_features(self) -> int:
        """N."""
        return self.packed.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.packed.shape[1] * 8 // self.scheme.bits

    @property
    def group_size(self) -> int:
        """Weights of a row that share a scale."""
        return self.scheme.row_group_size(self.in_features)
