"""The steps of a training run, its log, and checkpoints to go on from."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from glm_int4.checkpoint.prefix_file import newest_checkpoint
from glm_int4.errors import GLMError
from glm_int4.generation.engine import Engine
from glm_int4.tuning.arguments import MAX_GRAD_NORM, TrainingSettings
from glm_int4.tuning.checkpoints import LOG_FILE, PLOT_FILE, load_state, save_checkpoint
from glm_int4.tuning.evaluation import Progress
from glm_int4.tuning.log import TrainingLog, draw_loss, has_matplotlib
from glm_int4.tuning.methods.method import Method
from glm_int4.tuning.samples import Sample, collate


class TrainingRun:
    """What is trained, its optimizer, and where it stands."""

    def __init__(
        self,
        engine: Engine,
        trained: Method,
        samples: Sequence[Sample],
        settings: TrainingSettings,
        output: Path,
        *,
        resume: bool,
    ) -> None:
        self._engine, self._samples, self._settings = engine, samples, settings
        self._output, self.trained = output, trained
        self._digest = hashlib.sha256(repr([(s.input_ids, s.labels) for s in samples]).encode()).hexdigest()
        self.step = self.num_tokens = 0
        self._losses: list[float] = []  # of the steps since the last one that was logged
        self._optimizer = torch.optim.AdamW(trained.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        if resume:
            self._restore()
        self.log = TrainingLog(output / LOG_FILE, self.step)

    def _restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = load_state(self._output, self._digest, self._settings)
        if found is None:
            return
        folder, state = found
        self.trained.restore(folder, state)
        self._optimizer.load_state_dict(state["optimizer"])
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
        draw_loss(self.log.entries, self._output / PLOT_FILE, self.trained.title)

    def _take_step(self, batches: Iterator[list[Sample]]) -> float:
        """Accumulate the gradients of one step and take it; returns its mean loss."""
        settings = self._settings
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for i in range(settings.gradient_accumulation_steps):
            batch = next(batches)
            number = self.step * settings.gradient_accumulation_steps + i
            loss = self.trained.loss(*collate(batch, self._engine.config.pad_token_id), number)
            (loss / settings.gradient_accumulation_steps).backward()
            total += loss.item() / settings.gradient_accumulation_steps
            self.num_tokens += sum(len(sample.input_ids) for sample in batch)
        norm = torch.nn.utils.clip_grad_norm_(self.trained.parameters(), MAX_GRAD_NORM).item()
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
            "method": self._settings.method,
            "settings": asdict(self._settings),
            "data_digest": self._digest,
            "losses": self._losses,
            "optimizer": self._optimizer.state_dict(),
        }
        save_checkpoint(self._output / f"checkpoint-{self.step}", self.trained, state)
