"""With which matrices of a model a GPU is tried before it is taken."""

from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo
from glm_int4.quantization.gpu.gpu_probe import ProbedMatrix
from glm_int4.quantization.scheme import QuantizationScheme


def probed_matrices(info: CheckpointInfo) -> tuple[ProbedMatrix, ...]:
    """The first linear of every scheme, or else the head; none where both are unquantized."""
    vectors = layout.vectors(info.config)
    found: dict[QuantizationScheme, ProbedMatrix] = {}
    linears = [matrix for matrix in layout.linears(info.config) if info.schemes[matrix.name]]
    for matrix in linears or layout.vocabulary(info.config)[-1:]:
        scheme = info.schemes[matrix.name]
        if scheme is not None and scheme not in found:
            has_bias = f"{matrix.name}.bias" in vectors
            found[scheme] = ProbedMatrix(scheme, matrix.out_features, matrix.in_features, has_bias)
    return tuple(found.values())
