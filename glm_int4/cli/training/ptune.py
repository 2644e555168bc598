"""``glm-int4 ptune``: train a P-Tuning prefix on a quantized model; the same as ``finetune --method ptuning``."""

from glm_int4.cli import options
from glm_int4.cli.training import training_options
from glm_int4.cli.training.training_options import Output, PrefixProjection, PreSeqLen, TrainFile, Training

NAME, CONTEXT = "ptune", training_options.CONTEXT


def run(
    train_file: TrainFile,
    output: Output,
    training: Training,
    pre_seq_len: PreSeqLen = None,
    prefix_projection: PrefixProjection = None,
    as_json: options.Json = False,
) -> None:
    """Train a P-Tuning v2 prefix; the model itself stays as it is."""
    own = {"pre_seq_len": pre_seq_len, "prefix_projection": prefix_projection}
    training_options.train("ptuning", train_file, output, training, own, as_json)
