"""What the commands that train have in common: their options, the run, and what they print."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glm_int4.cli import console, options

if TYPE_CHECKING:
    from glm_int4.tuning.training import TrainingReport

# The official scripts write --max_steps where this program writes --max-steps; both are taken.
CONTEXT = {"token_normalize_func": lambda word: word.replace("_", "-")}

TrainFile = Annotated[
    Path, typer.Option(help="JSON, JSON lines or CSV: columns, messages, or Alpaca's instruction, input and output.")
]
Output = Annotated[Path, typer.Option(help="Folder for checkpoints, log and plot.")]
PreSeqLen = Annotated[int | None, typer.Option(help="P-Tuning: columns of the prefix. Default: 128.")]
PrefixProjection = Annotated[
    bool | None, typer.Option("--prefix-projection", help="P-Tuning: compute the prefix by a two-layer MLP.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The options of every method; None is the method's default."""

    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id. Default: $GLM_INT4_MODEL, or ./chatglm-6b-int4.")
    ] = None
    prompt_column: Annotated[str, typer.Option(help="Column of the questions.")] = "content"
    response_column: Annotated[str, typer.Option(help="Column of the answers.")] = "summary"
    history_column: Annotated[
        str | None, typer.Option(help="Column of the rounds before: [[question, answer], ...].")
    ] = None
    eval_file: Annotated[
        Path | None, typer.Option(help="Answer these questions after training: loss, ROUGE and BLEU-4.")
    ] = None
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Answer them with the most likely tokens; officially they are sampled.")
    ] = False
    max_source_length: Annotated[
        int | None, typer.Option(help="Most tokens of a question. Default: LoRA 256, P-Tuning 64.")
    ] = None
    max_target_length: Annotated[
        int | None,
        typer.Option(help="Most tokens of an answer. Default: LoRA 512, P-Tuning 64, for versions 2 to 4 128."),
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(help="Falls linearly to 0. Default: LoRA 5e-5, P-Tuning 2e-2.")
    ] = None
    per_device_train_batch_size: Annotated[int | None, typer.Option(help="Samples that run together. Default: 1.")] = (
        None
    )
    gradient_accumulation_steps: Annotated[
        int | None, typer.Option(help="Batches of a step. Default: LoRA 4, P-Tuning 16.")
    ] = None
    max_steps: Annotated[int, typer.Option(help="Steps in all.")] = 3000
    warmup_steps: Annotated[int, typer.Option(help="Steps over which the learning rate rises.")] = 0
    logging_steps: Annotated[int, typer.Option(help="Steps between lines of the log.")] = 10
    save_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. Default: LoRA 500, P-Tuning 1000.")
    ] = None
    seed: Annotated[int, typer.Option(help="Of what is trained, the order of the data and the dropout.")] = 42
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Compute activations twice, which takes less memory and more time.")
    ] = True
    device: options.Device = "auto"
    threads: options.Threads = None
    model_version: options.ModelVersion = "auto"
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False


def train(method: str, train_file: Path, output: Path, training: Training, own: dict[str, Any], as_json: bool) -> None:
    """Run ``finetune`` and print its report; ``own``: the method's own arguments."""
    from glm_int4.tuning.training import finetune

    given = {name: value for name, value in (asdict(training) | own).items() if value is not None}
    given["eval_greedy"] = given.pop("greedy")
    model = options.find_model(given.pop("model", None))
    with console.progress("training") as progress:
        report = finetune(model, train_file, output, method=method, progress=progress, **given)
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    _print(report)


def _print(report: "TrainingReport") -> None:
    left_out = f", {report.empty_rows} empty rows left out" if report.empty_rows else ""
    left_out += f", {report.left_out} long conversations left out" if report.left_out else ""
    cut = f", {report.cut_answers} answers cut" if report.cut_answers else ""
    speed = f", {report.tokens_per_s:.0f} tokens/s" if report.tokens_per_s else ""
    print(f"{report.parameters / 1e6:.2f} M parameters trained on {report.samples} samples{left_out}{cut}")
    loss = f", loss {report.loss:.4f}" if report.loss is not None else ""
    print(f"{report.step} steps{loss}, {report.seconds:.0f} s{speed}")
    if report.evaluation:
        names = {"loss": "loss", "rouge-1": "ROUGE-1", "rouge-2": "ROUGE-2", "rouge-l": "ROUGE-L", "bleu-4": "BLEU-4"}
        figures = ", ".join(f"{label} {report.evaluation[name]:.2f}" for name, label in names.items())
        print(f"evaluation: {figures}, exact {report.evaluation['exact']:.1f} % of {report.evaluation['samples']}")
    option = {"lora": "--adapter", "ptuning": "--prefix"}[report.method]
    print(f"wrote {report.checkpoint}; try: glm-int4 chat MODEL {option} {shlex.quote(report.checkpoint)}")
