"""What a quantizing run reports: to its caller, and to ``quantization_report.json``."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.quantization.scheme import QuantizationScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One quantized matrix: its error is relative RMS, ``|w - w'| / |w|``.

    expected_kl: of a mix, the KL divergence in nats per token that this matrix was measured to cost.
    """

    name: str
    kind: str
    bits: int
    group_size: int | str
    num_weights: int
    stored_bytes: int
    rel_error: float
    expected_kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationReport:
    """What a run did. Sizes in bytes; ``bits_per_weight`` counts every tensor as stored.

    bits, group_size: "mixed" where they were picked matrix by matrix. method: "kept" where the weights were
    quantized already and were not rounded again.
    """

    output: str
    bits: int | str
    group_size: int | str
    method: str
    bits_per_weight: float
    seconds: float
    peak_rss_bytes: int
    source_bytes: int
    stored_bytes: int
    layers: list[LayerReport]


def layer_report(
    matrix: MatrixSpec,
    scheme: QuantizationScheme | None,
    stored_bytes: int,
    rel_error: float,
    expected_kl: float | None = None,
) -> LayerReport:
    """Describe one matrix that was quantized with ``scheme``."""
    assert scheme is not None
    return LayerReport(
        name=matrix.name,
        kind=matrix.kind,
        bits=scheme.bits,
        group_size="channel" if scheme.group_size is None else scheme.group_size,
        num_weights=matrix.out_features * matrix.in_features,
        stored_bytes=stored_bytes,
        rel_error=rel_error,
        expected_kl=expected_kl,
    )


def read_report(path: Path, fingerprint: Any) -> tuple[QuantizationReport, dict[str, str]] | None:
    """The report that a run with this fingerprint wrote, and its shards' SHA-256; None where there is none."""
    try:
        stored = json.loads(path.read_bytes())
        if stored["fingerprint"] != fingerprint:
            return None
        layers = [LayerReport(**layer) for layer in stored["layers"]]
        values = {field.name: stored[field.name] for field in fields(QuantizationReport)} | {"layers": layers}
        return QuantizationReport(**values), dict(stored["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
