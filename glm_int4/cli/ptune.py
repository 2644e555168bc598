"""``glm-int4 ptune``: train a P-Tuning prefix on a quantized model."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glm_int4.cli import console, options

if TYPE_CHECKING:
    from glm_int4.tuning.training import PTuneReport

NAME = "ptune"

# The official scripts write --pre_seq_len where this program writes --pre-seq-len; both are taken.
CONTEXT = {"token_normalize_func": lambda word: word.replace("_", "-")}


def run(
    train_file: Annotated[Path, typer.Option(help="JSON, JSON lines or CSV.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, log and plot.")],
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id. Default: $GLM_INT4_MODEL, or ./chatglm-6b-int4.")
    ] = None,
    prompt_column: Annotated[str, typer.Option(help="Column of the questions.")] = "content",
    response_column: Annotated[str, typer.Option(help="Column of the answers.")] = "summary",
    history_column: Annotated[
        str | None, typer.Option(help="Column of the rounds before: [[question, answer], ...].")
    ] = None,
    eval_file: Annotated[
        Path | None, typer.Option(help="Answer these questions after training: loss, ROUGE and BLEU-4.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Answer them with the most likely tokens; officially they are sampled.")
    ] = False,
    pre_seq_len: Annotated[int, typer.Option(help="Columns of the prefix.")] = 128,
    prefix_projection: Annotated[
        bool, typer.Option("--prefix-projection", help="Compute the prefix by a two-layer MLP.")
    ] = False,
    max_source_length: Annotated[int, typer.Option(help="Most tokens of a question.")] = 64,
    max_target_length: Annotated[
        int | None, typer.Option(help="Most tokens of an answer. Default: 64; versions 2 to 4: 128.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Falls linearly to 0.")] = 2e-2,
    per_device_train_batch_size: Annotated[int, typer.Option(help="Samples that run together.")] = 1,
    gradient_accumulation_steps: Annotated[int, typer.Option(help="Batches of a step.")] = 16,
    max_steps: Annotated[int, typer.Option(help="Steps in all.")] = 3000,
    warmup_steps: Annotated[int, typer.Option(help="Steps over which the learning rate rises.")] = 0,
    logging_steps: Annotated[int, typer.Option(help="Steps between lines of the log.")] = 10,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the first prefix, the order of the data and the dropout.")] = 42,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Compute activations twice, which takes less memory and more time.")
    ] = True,
    device: options.Device = "auto",
    threads: options.Threads = None,
    model_version: options.ModelVersion = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False,
    as_json: options.Json = False,
) -> None:
    """Train a P-Tuning v2 prefix; the model itself stays as it is."""
    from glm_int4.tuning.training import ptune

    with console.progress("training") as progress:
        report = ptune(
            options.find_model(model),
            train_file,
            output,
            prompt_column=prompt_column,
            response_column=response_column,
            history_column=history_column,
            eval_file=eval_file,
            eval_greedy=greedy,
            resume=resume,
            overwrite=overwrite,
            device=device,
            model_version=model_version,
            threads=threads,
            progress=progress,
            pre_seq_len=pre_seq_len,
            prefix_projection=prefix_projection,
            max_source_length=max_source_length,
            max_target_length=max_target_length,
            learning_rate=learning_rate,
            per_device_train_batch_size=per_device_train_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            max_steps=max_steps,
            warmup_steps=warmup_steps,
            logging_steps=logging_steps,
            save_steps=save_steps,
            seed=seed,
            gradient_checkpointing=gradient_checkpointing,
        )
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    _print(report)


def _print(report: "PTuneReport") -> None:
    left_out = f", {report.empty_rows} empty rows left out" if report.empty_rows else ""
    cut = f", {report.cut_answers} answers cut" if report.cut_answers else ""
    speed = f", {report.tokens_per_s:.0f} tokens/s" if report.tokens_per_s else ""
    print(f"{report.parameters / 1e6:.2f} M parameters trained on {report.samples} samples{left_out}{cut}")
    loss = f", loss {report.loss:.4f}" if report.loss is not None else ""
    print(f"{report.step} steps{loss}, {report.seconds:.0f} s{speed}")
    if report.evaluation:
        names = {"loss": "loss", "rouge-1": "ROUGE-1", "rouge-2": "ROUGE-2", "rouge-l": "ROUGE-L", "bleu-4": "BLEU-4"}
        figures = ", ".join(f"{label} {report.evaluation[name]:.2f}" for name, label in names.items())
        print(f"evaluation: {figures}, exact {report.evaluation['exact']:.1f} % of {report.evaluation['samples']}")
    print(f"wrote {report.checkpoint}; try: glm-int4 chat MODEL --prefix {shlex.quote(str(report.checkpoint))}")
