"""``ptune``: train a prefix on a frozen model, with checkpoints to go on from."""

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from glm_int4.checkpoint.files.folder import read_config, resolve_folder
from glm_int4.checkpoint.prefix_file import NO_PREFIX, newest_checkpoint, read_prefix_encoder
from glm_int4.errors import GLMError, InputError
from glm_int4.generation.engine import Engine
from glm_int4.generation.loading import load
from glm_int4.models.prefix_encoder import PrefixEncoder
from glm_int4.system import lock_folder, peak_bytes
from glm_int4.tuning.answer_scores import check_metrics
from glm_int4.tuning.arguments import MAX_GRAD_NORM, PREFIX_DROPOUT, PTuneSettings
from glm_int4.tuning.checkpoints import LOG_FILE, PLOT_FILE, load_state, make_folder, prepare_output, save_checkpoint
from glm_int4.tuning.data import Columns, Row, Sample, collate, make_sample, read_rows
from glm_int4.tuning.evaluation import evaluate
from glm_int4.tuning.log import TrainingLog, draw_loss, has_matplotlib
from glm_int4.tuning.loss import prefix_loss
from glm_int4.tuning.memory import estimate_memory

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PTuneReport:
    """What a run did.

    checkpoint: the newest checkpoint. step: its number. loss: of the last steps that were logged.
    empty_rows, cut_answers: rows left out, and answers longer than ``max_target_length``. planned_bytes: see
    ``memory.estimate_memory``. evaluation: see ``evaluation.evaluate``.
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


def ptune(
    model: str | Path,
    train_file: str | Path,
    output: str | Path,
    *,
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
) -> PTuneReport:
    """Train a P-Tuning v2 prefix; every weight of the model stays as it is.

    Args:
        model: folder or hub id; INT4, INT8 or half precision.
        train_file: JSON, JSON lines or CSV.
        output: folder for the checkpoints, the log and the plot.
        prompt_column, response_column, history_column: names of the columns.
        eval_file: answered and scored after training; ``eval_greedy`` takes the most likely tokens.
        resume: go on from the newest checkpoint in ``output``. overwrite: delete an earlier run there.
        device, dtype, model_version, threads: as of ``glm_int4.load``.
        progress: called with steps done, steps in all and what is at hand.
        official_arguments: see ``settings.PTuneSettings``.
    Raises:
        UserError: what is wrong with data, arguments or output.
        GLMError: the loss is not finite any more; the last checkpoint is good.
    """
    settings, output = PTuneSettings.from_official(official_arguments), Path(output)
    if eval_file is not None:
        check_metrics()
    columns = Columns(prompt=prompt_column, response=response_column, history=history_column)
    rows, num_empty = read_rows(train_file, columns)
    eval_rows = read_rows(eval_file, columns)[0] if eval_file is not None else []
    engine = load(model, device=device, dtype=dtype, prefix=NO_PREFIX, model_version=model_version, threads=threads)
    samples = _samples(engine, rows, settings)
    make_folder(output)
    lock = lock_folder(output)
    try:
        prepare_output(output, resume=resume, overwrite=overwrite)
        run = _Run(engine, samples, settings, output, read_config(resolve_folder(model)), resume=resume)
        started = time.perf_counter()
        run.train(progress)
        seconds = time.perf_counter() - started
        evaluation = None
        if eval_rows:
            evaluation = evaluate(
                engine, run.encoder, eval_rows, settings, output, greedy=eval_greedy, progress=progress
            )
    finally:
        if lock is not None:
            os.close(lock)
    return run.report(empty_rows=num_empty, seconds=seconds, evaluation=evaluation)


def _samples(engine: Engine, rows: Sequence[Row], settings: PTuneSettings) -> list[Sample]:
    max_source, max_target = settings.max_source_length, settings.target_length(engine.config.version)
    if max_source + max_target + 1 > engine.max_length:
        raise InputError(
            f"expected max_source_length and max_target_length of at most {engine.max_length - 1} together, which the "
            f"model was made for, got {max_source} and {max_target}"
        )
    samples = [make_sample(engine.tokenizer, row, max_source, max_target) for row in rows]
    num_cut = sum(sample.num_cut > 0 for sample in samples)
    if num_cut:
        logger.warning(
            "%s of %s answers are longer than max_target_length %s and were cut", num_cut, len(samples), max_target
        )
    return samples


class _Run:
    """One training run: the encoder, its optimizer, and where it stands."""

    def __init__(
        self,
        engine: Engine,
        samples: Sequence[Sample],
        settings: PTuneSettings,
        output: Path,
        model_config: dict[str, Any],
        *,
        resume: bool,
    ) -> None:
        self._engine, self._samples, self._settings = engine, samples, settings
        self._output, self._model_config = output, model_config
        self._digest = hashlib.sha256(repr([(s.input_ids, s.labels) for s in samples]).encode()).hexdigest()
        self.step = self.num_tokens = 0
        self._losses: list[float] = []  # of the steps since the last one that was logged
        with torch.random.fork_rng(devices=[]):  # so that a caller's random numbers stay as they were
            torch.manual_seed(settings.seed)
            encoder = PrefixEncoder(engine.config, settings.pre_seq_len, settings.prefix_projection)
        self.encoder = encoder.to(engine.device)
        self._optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        self._generator = torch.Generator(engine.device).manual_seed(settings.seed)
        if resume:
            self._restore()
        self.log = TrainingLog(output / LOG_FILE, self.step)

    def _restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = load_state(self._output, self._digest, self._settings)
        if found is None:
            return
        folder, state = found
        self.encoder.load_state_dict(read_prefix_encoder(folder, self._engine.config).state_dict())
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self.step, self._losses = state["step"], state["losses"]

    def train(self, progress: Progress | None) -> None:
        """Take the steps up to ``max_steps``; saves every ``save_steps`` and at the end."""
        settings, first = self._settings, self.step
        drawn = has_matplotlib()
        batches = self._batches()
        started = time.perf_counter()
        while self.step < settings.max_steps:
            loss = self._take_step(batches)
            self.step += 1
            speed = self.num_tokens / (time.perf_counter() - started)
            last = self.step == settings.max_steps
            if self.step % settings.logging_steps == 0 or last:
                self._write_log(speed)
            if self.step % settings.save_steps == 0 or last:
                self._save()
                if drawn:
                    self._draw()
            if progress:
                item = f"step {self.step} of {settings.max_steps}, loss {loss:.4f}, {speed:.0f} tokens/s"
                progress(self.step - first, settings.max_steps - first, item)
        if drawn and self.step == first:  # the run had ended but for what follows the last checkpoint
            self._draw()

    def _draw(self) -> None:
        draw_loss(self.log.entries, self._output / PLOT_FILE)

    def _take_step(self, batches: Iterator[list[Sample]]) -> float:
        """Accumulate the gradients of one step and take it; returns its mean loss."""
        settings = self._settings
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(settings.gradient_accumulation_steps):
            batch = next(batches)
            loss = prefix_loss(
                self._engine,
                self.encoder,
                *collate(batch, self._engine.config.pad_token_id),
                dropout=PREFIX_DROPOUT,
                generator=self._generator,
                recompute=settings.gradient_checkpointing,
            )
            (loss / settings.gradient_accumulation_steps).backward()
            total += loss.item() / settings.gradient_accumulation_steps
            self.num_tokens += sum(len(sample.input_ids) for sample in batch)
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), MAX_GRAD_NORM).item()
        if not math.isfinite(total) or not math.isfinite(norm):
            kept = newest_checkpoint(self._output) or "none yet"
            raise GLMError(
                f"expected a finite loss and gradient in step {self.step + 1}, got {total:g} and {norm:g}; "
                f"the last good checkpoint is {kept}: go on from it with --resume and a lower --learning-rate"
            )
        self._optimizer.step()
        self._losses.append(total)
        return total

    def _batches(self) -> Iterator[list[Sample]]:
        """Samples in an order that the seed decides, another one every epoch, from the present step on."""
        settings, count = self._settings, len(self._samples)
        size = settings.per_device_train_batch_size
        position = self.step * settings.gradient_accumulation_steps * size
        order, ordered_epoch = torch.empty(0), -1
        while True:
            batch = []
            for _ in range(size):
                epoch, index = divmod(position, count)
                if epoch != ordered_epoch:
                    generator = torch.Generator().manual_seed(settings.seed + epoch)
                    order, ordered_epoch = torch.randperm(count, generator=generator), epoch
                batch.append(self._samples[int(order[index])])
                position += 1
            yield batch

    def _write_log(self, tokens_per_s: float) -> None:
        settings = self._settings
        samples_a_step = settings.gradient_accumulation_steps * settings.per_device_train_batch_size
        self.log.add(
            {
                "step": self.step,
                "epoch": round(self.step * samples_a_step / len(self._samples), 4),
                "loss": sum(self._losses) / len(self._losses),
                "learning_rate": settings.learning_rate_at(self.step),
                "tokens_per_s": round(tokens_per_s, 1),
            }
        )
        self._losses = []

    def _save(self) -> None:
        state = {
            "step": self.step,
            "settings": asdict(self._settings),
            "data_digest": self._digest,
            "losses": self._losses,
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }
        save_checkpoint(self._output / f"checkpoint-{self.step}", self.encoder, state, self._model_config)

    def report(self, *, empty_rows: int, seconds: float, evaluation: dict[str, float] | None) -> PTuneReport:
        """What the run did."""
        return PTuneReport(
            checkpoint=str(newest_checkpoint(self._output)),
            step=self.step,
            loss=self.log.entries[-1]["loss"] if self.log.entries else None,
            parameters=sum(parameter.numel() for parameter in self.encoder.parameters()),
            samples=len(self._samples),
            empty_rows=empty_rows,
            cut_answers=sum(sample.num_cut > 0 for sample in self._samples),
            seconds=seconds,
            tokens_per_s=self.num_tokens / seconds if self.num_tokens else None,
            planned_bytes=estimate_memory(self._engine.info, self._engine.setup, self._settings).total,
            peak_rss_bytes=peak_bytes(),
            evaluation=evaluation,
        )
