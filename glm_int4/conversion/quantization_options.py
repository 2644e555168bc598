"""What a caller of ``quantize_checkpoint`` may ask for, and which requests contradict themselves."""

import math
from dataclasses import dataclass
from pathlib import Path

from glm_int4.adapters.adapter_source import AdapterSource
from glm_int4.checkpoint.writing.output_folder import MAX_SHARD_BYTES
from glm_int4.errors import InputError
from glm_int4.quantization.scheme import QuantizationScheme

METHODS = ("rtn", "hqq", "gptq")
FORMATS = ("compressed-tensors", "official")
# GPTQ takes hours: what an interruption costs is at most the work on one shard.
GPTQ_SHARD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """What a caller asks for; see ``quantize_checkpoint``. ``target_bytes`` is of all tensors as stored.

    adapters: to be merged into the weights.
    """

    bits: int = 4
    group_size: int | str | None = None
    method: str = "rtn"
    symmetric: bool | None = None
    head_bits: int | None = None
    output_format: str = "compressed-tensors"
    quantize_embeddings: bool = False
    vllm: bool = False
    target_bits: float | None = None
    target_bytes: int | None = None
    calibration: Path | None = None
    device: str = "cpu"
    model_version: str = "auto"
    max_shard_bytes: int | None = None
    adapters: tuple[AdapterSource, ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InputError(f"expected bits to be 4 or 8, got {self.bits}")
        if self.method not in METHODS:
            raise InputError(f"expected the method {', '.join(METHODS[:-1])} or {METHODS[-1]}, got {self.method!r}")
        if self.head_bits not in (None, 4, 8, 16):
            raise InputError(f"expected head bits to be 4, 8 or 16, got {self.head_bits}")
        size = self.group_size
        if size not in (None, "channel") and not (isinstance(size, int) and not isinstance(size, bool)):
            raise InputError(f"expected a group size of 32, 64, 128 or channel, got {size!r}")
        if self.output_format not in FORMATS:
            raise InputError(f"expected the format {' or '.join(FORMATS)}, got {self.output_format!r}")
        if self.official:
            self._check_official()
        elif self.quantize_embeddings:
            raise InputError("expected --format official with --quantize-embeddings, got compressed-tensors")
        if self.vllm and self.head_bits not in (None, 16):
            raise InputError(f"expected head bits 16 for vLLM, got {self.head_bits}; leave them out")
        if self.symmetric is False and (self.vllm or self.official):
            raise InputError(
                f"expected no --asymmetric with {'--vllm' if self.vllm else '--format official'}, which knows no "
                "zero points"
            )
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise InputError(f"expected the device auto, cuda or cpu, got {self.device!r}")
        self._check_calibration()
        self._check_target()

    def _check_official(self) -> None:
        if self.group_size not in (None, "channel"):
            raise InputError(
                f"expected group size channel for the official format, which has no groups, got {self.group_size}"
            )
        if self.method != "rtn":
            raise InputError(
                f"expected no --method {self.method} with the official format, which is rounded as officially"
            )
        if self.head_bits not in (None, 16) or self.vllm:
            other = "--vllm" if self.vllm else f"--head-bits {self.head_bits}"
            raise InputError(f"expected no {other} with the official format; see --quantize-embeddings")

    def _check_calibration(self) -> None:
        if self.method == "gptq" and self.calibration is None:
            raise InputError(
                "expected --calibration FILE with --method gptq, got none; give a text like those that the model will "
                "see, of 16384 tokens (32 x 512) or more"
            )
        if self.calibration is not None and self.method != "gptq" and not self.mixed:
            raise InputError(
                "expected --method gptq, --target-bits or --target-size with --calibration, got --method "
                f"{self.method}, which needs no text"
            )

    def _check_target(self) -> None:
        if not self.mixed:
            return
        if self.target_bits is not None and self.target_bytes is not None:
            raise InputError("expected --target-bits or --target-size, got both")
        if self.target_bits is not None and not (math.isfinite(self.target_bits) and 0 < self.target_bits <= 16):
            raise InputError(f"expected target bits above 0 and up to 16, got {self.target_bits}")
        if self.target_bytes is not None and self.target_bytes <= 0:
            raise InputError(f"expected a target size above 0, got {self.target_bytes} bytes")
        for name, given in (
            ("--group-size", self.group_size),
            ("--vllm", self.vllm),
            ("--format official", self.official),
        ):
            if given:
                raise InputError(f"expected no {name} with a target, which picks bits and groups layer by layer")

    @property
    def official(self) -> bool:
        """Whether the official layout is written."""
        return self.output_format == "official"

    @property
    def mixed(self) -> bool:
        """Whether bits and group size are picked layer by layer."""
        return self.target_bits is not None or self.target_bytes is not None

    @property
    def shard_bytes(self) -> int:
        """Most bytes of a file, a larger tensor alone excepted."""
        if self.max_shard_bytes is not None:
            return self.max_shard_bytes
        return GPTQ_SHARD_BYTES if self.method == "gptq" else MAX_SHARD_BYTES

    @property
    def scheme(self) -> QuantizationScheme:
        """Scheme of the linear layers of a half-precision checkpoint."""
        per_channel = self.official or self.group_size == "channel" or (self.group_size is None and self.bits == 8)
        size = None if per_channel else 128 if self.group_size is None else int(self.group_size)
        symmetric = self.bits == 8 if self.symmetric is None else self.symmetric
        return QuantizationScheme(bits=self.bits, group_size=size, symmetric=symmetric or self.official or self.vllm)

    def vocabulary_scheme(self, hidden_size: int) -> QuantizationScheme | None:
        """Scheme of the embedding and the head: INT8 per row, INT4 in groups, None for unquantized."""
        if self.official:
            return self.scheme if self.quantize_embeddings else None
        if self.vllm or self.head_bits == 16:
            return None
        if self.head_bits != 4:
            return QuantizationScheme(bits=8, group_size=None, symmetric=True)
        fitting = next((size for size in (128, 64, 32) if hidden_size % size == 0), None)
        if self.group_size is not None:
            fitting = self.scheme.group_size or fitting
        return QuantizationScheme(bits=4, group_size=fitting, symmetric=bool(self.symmetric))


def parse_size(size: int | str) -> int:
    """Bytes of a number or of a text like "3.2GB", "900 MB" or "1.5e9".

    Raises:
        InputError: another text.
    """
    text = str(size).strip().lower().removesuffix("b").rstrip()
    factor = {"k": 10**3, "m": 10**6, "g": 10**9}.get(text[-1:], 1)
    try:
        number = float(text if factor == 1 else text[:-1]) * factor
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"expected a size like 3.2GB or 900MB, got {size!r}")
    return int(number)
