"""``glm-int4 perplexity``: how well a model predicts a text."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from glm_int4.cli import console, options
from glm_int4.text.text_file import read_text

NAME = "perplexity"


def run(
    *,
    text: Annotated[Path, typer.Option(help="A UTF-8 text file.")],
    model: options.Model = None,
    window: Annotated[int | None, typer.Option(help="Tokens seen at once. Default: 2048 or the model's limit.")] = None,
    stride: Annotated[int, typer.Option(help="Tokens the window moves.")] = 512,
    reference: Annotated[
        str | None, typer.Option(help="A checkpoint to compare with: adds KL divergence and top-1 agreement.")
    ] = None,
    loading: options.Loading,
    as_json: options.Json = False,
) -> None:
    """Measure perplexity over a sliding window, with its standard error."""
    content = read_text(text)
    glm = loading.load(model)
    other = None
    if reference:
        other = options.Loading(device=loading.device, model_version=loading.model_version).load(reference)

    from glm_int4.generation.scoring import measure

    with console.progress("perplexity") as progress:
        result = measure(
            glm,
            content,
            window=window,
            stride=stride,
            reference=other,
            progress=lambda done, total: progress(done, total, "tokens"),
        )
    if as_json:
        print(json.dumps(asdict(result), indent=2))
        return
    print(
        f"perplexity {result.perplexity:.4f} +- {result.standard_error:.4f} "
        f"({result.tokens} tokens, window {result.window}, stride {result.stride})"
    )
    if result.kl is not None and result.top1 is not None:
        print(f"against {reference}: KL {result.kl:.6f} nats per token, top-1 agreement {100 * result.top1:.2f} %")
