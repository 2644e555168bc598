"""``finetune`` and ``ptune``: train an adapter or a prefix on a frozen model, with checkpoints to go on from."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glm_int4.checkpoint.files.folder import read_config, resolve_folder
from glm_int4.checkpoint.prefix_file import NO_PREFIX, newest_checkpoint
from glm_int4.errors import InputError
from glm_int4.generation.engine import Engine
from glm_int4.generation.loading import load
from glm_int4.system import lock_folder, peak_bytes
from glm_int4.tuning.answer_scores import check_metrics
from glm_int4.tuning.arguments import LoraTrainingSettings, PTuneSettings, TrainingSettings, read_settings
from glm_int4.tuning.checkpoints import make_folder, prepare_output
from glm_int4.tuning.conversations import Conversation
from glm_int4.tuning.data import Columns, Example, read_rows
from glm_int4.tuning.evaluation import Progress, evaluate
from glm_int4.tuning.memory import estimate_memory
from glm_int4.tuning.methods.method import Method
from glm_int4.tuning.methods.trained_lora import TrainedLora, target_places
from glm_int4.tuning.methods.trained_prefix import TrainedPrefix
from glm_int4.tuning.samples import Preparation, Sample
from glm_int4.tuning.training_run import TrainingRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """What a run did.

    checkpoint: the newest checkpoint. step: its number. loss: of the last steps that were logged.
    empty_rows: left out, because question or answer is empty. cut_answers: longer than ``max_target_length``.
    left_out: conversations without an answer within the most tokens. planned_bytes: see ``memory.estimate_memory``.
    evaluation: see ``evaluation.evaluate``.
    """

    checkpoint: str
    step: int
    loss: float | None
    parameters: int
    samples: int
    empty_rows: int
    cut_answers: int
    seconds: float
    tokens_per_s: float | None
    planned_bytes: int
    peak_rss_bytes: int
    evaluation: dict[str, float] | None
    method: str
    left_out: int


def finetune(
    model: str | Path,
    train_file: str | Path,
    output: str | Path,
    *,
    method: str = LoraTrainingSettings.method,
    prompt_column: str = "content",
    response_column: str = "summary",
    history_column: str | None = None,
    eval_file: str | Path | None = None,
    eval_greedy: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    model_version: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    **official_arguments: Any,
) -> TrainingReport:
    """Train a LoRA adapter or a P-Tuning v2 prefix; every weight of the model stays as it is.

    Args:
        model: folder or hub id; INT4, INT8 or half precision.
        train_file: JSON, JSON lines or CSV: columns, conversations, or Alpaca's fields; see ``data.read_rows``.
        output: folder for the checkpoints, the log and the plot.
        method: "lora" or "ptuning".
        prompt_column, response_column, history_column: names of the columns.
        eval_file: answered and scored after training; ``eval_greedy`` takes the most likely tokens.
        resume: go on from the newest checkpoint in ``output``. overwrite: delete an earlier run there.
        device, dtype, model_version, threads: as of ``glm_int4.load``.
        progress: called with steps done, steps in all and what is at hand.
        official_arguments: see ``arguments.LoraTrainingSettings`` and ``arguments.PTuneSettings``.
    Raises:
        UserError: what is wrong with data, arguments or output.
        GLMError: the loss is not finite any more; the last checkpoint is good.
    """
    settings, output = read_settings(method, official_arguments), Path(output)
    if eval_file is not None:
        check_metrics()
    columns = Columns(prompt=prompt_column, response=response_column, history=history_column)
    examples, num_empty = read_rows(train_file, columns)
    eval_examples = read_rows(eval_file, columns)[0] if eval_file is not None else []
    engine = load(model, device=device, dtype=dtype, prefix=NO_PREFIX, model_version=model_version, threads=threads)
    preparation = _preparation(engine, settings)
    samples, left_out = _samples(preparation, examples)
    trained = _begin(engine, settings, model)
    make_folder(output)
    lock = lock_folder(output)
    try:
        prepare_output(output, resume=resume, overwrite=overwrite)
        run = TrainingRun(engine, trained, samples, settings, output, resume=resume)
        started = time.perf_counter()
        run.train(progress)
        seconds = time.perf_counter() - started
        evaluation = None
        if eval_examples:
            evaluation = evaluate(
                trained, preparation, eval_examples, output, seed=settings.seed, greedy=eval_greedy, progress=progress
            )
    finally:
        if lock is not None:
            os.close(lock)
    whole = any(isinstance(example, Conversation) for example in examples)
    return TrainingReport(
        checkpoint=str(newest_checkpoint(output)),
        step=run.step,
        loss=run.log.entries[-1]["loss"] if run.log.entries else None,
        parameters=sum(parameter.numel() for parameter in trained.parameters()),
        samples=len(samples),
        empty_rows=num_empty,
        cut_answers=sum(sample.num_cut > 0 for sample in samples),
        seconds=seconds,
        tokens_per_s=run.num_tokens / seconds if run.num_tokens else None,
        planned_bytes=estimate_memory(engine.info, engine.setup, settings, all_learnt=whole).total,
        peak_rss_bytes=peak_bytes(),
        evaluation=evaluation,
        method=settings.method,
        left_out=left_out,
    )


def ptune(model: str | Path, train_file: str | Path, output: str | Path, **arguments: Any) -> TrainingReport:
    """Train a P-Tuning v2 prefix: ``finetune`` with the method "ptuning"."""
    return finetune(model, train_file, output, method=PTuneSettings.method, **arguments)


def _begin(engine: Engine, settings: TrainingSettings, model: str | Path) -> Method:
    """What is trained, as it is before the first step."""
    if isinstance(settings, LoraTrainingSettings):
        return TrainedLora(engine, settings, str(model))
    assert isinstance(settings, PTuneSettings)
    return TrainedPrefix(engine, settings, read_config(resolve_folder(model)))


def _preparation(engine: Engine, settings: TrainingSettings) -> Preparation:
    """How examples become ids; raises InputError for lengths that the model was not made for."""
    max_source, max_target = settings.max_source_length, settings.target_length(engine.config)
    if max_source + max_target + 1 > engine.max_length:
        raise InputError(
            f"expected max_source_length and max_target_length of at most {engine.max_length - 1} together, which the "
            f"model was made for, got {max_source} and {max_target}"
        )
    if isinstance(settings, LoraTrainingSettings):
        target_places(engine.config, settings.target_modules)
    return Preparation(engine.tokenizer, max_source, max_target)


def _samples(preparation: Preparation, examples: Sequence[Example]) -> tuple[list[Sample], int]:
    """What is learnt of all examples, and how many conversations had no answer within the most tokens."""
    made = [preparation.samples(example) for example in examples]
    samples = [sample for some in made for sample in some]
    num_cut, num_left_out = sum(sample.num_cut > 0 for sample in samples), sum(not some for some in made)
    max_target = preparation.max_target_length
    if num_cut:
        logger.warning(
            "%s of %s answers are longer than max_target_length %s and were cut", num_cut, len(samples), max_target
        )
    if num_left_out:
        limit = preparation.max_source_length + max_target + 1
        logger.warning(
            "%s of %s conversations have no answer in their first %s tokens and were left out",
            *(num_left_out, len(made), limit),
        )
    if not samples:
        raise InputError(
            "expected conversations with an answer within max_source_length and max_target_length, got none; raise them"
        )
    return samples, num_left_out
