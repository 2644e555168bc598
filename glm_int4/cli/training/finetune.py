"""``glm-int4 finetune``: train a LoRA adapter, or a P-Tuning prefix, on a quantized model."""

from typing import Annotated

import typer

from glm_int4.cli import options
from glm_int4.cli.training import training_options
from glm_int4.cli.training.training_options import Output, PrefixProjection, PreSeqLen, TrainFile, Training

NAME, CONTEXT = "finetune", training_options.CONTEXT


def run(
    train_file: TrainFile,
    output: Output,
    training: Training,
    method: Annotated[str, typer.Option(help="lora, or ptuning for a prefix of P-Tuning v2.")] = "lora",
    r: Annotated[int | None, typer.Option("--r", help="LoRA: rank of the products. Default: 8.")] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option("--lora-alpha", "--alpha", help="LoRA: the products' factor is alpha / r. Default: 32."),
    ] = None,
    lora_dropout: Annotated[
        float | None,
        typer.Option("--lora-dropout", "--dropout", help="LoRA: share of inputs that training drops. Default: 0.1."),
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="LoRA: linear layers, by the ends of their names, or all-linear. Default: query_key_value.",
        ),
    ] = None,
    pre_seq_len: PreSeqLen = None,
    prefix_projection: PrefixProjection = None,
    as_json: options.Json = False,
) -> None:
    """Train a LoRA adapter or a P-Tuning prefix; the model itself stays as it is."""
    own = {
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "target_modules": target_modules,
        "pre_seq_len": pre_seq_len,
        "prefix_projection": prefix_projection,
    }
    training_options.train(method, train_file, output, training, own, as_json)
