"""How well a model with its prefix answers a file of questions."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from glm_int4.generation.engine import Engine
from glm_int4.generation.sampling import SamplingParams
from glm_int4.models.prefix_encoder import PrefixEncoder, split_prefix
from glm_int4.tuning.answer_scores import score
from glm_int4.tuning.arguments import PTuneSettings
from glm_int4.tuning.data import Row, collate, make_sample, source_ids, target_ids
from glm_int4.tuning.log import write_text
from glm_int4.tuning.loss import IGNORED, prefix_loss

# Officially answers are sampled, up to 512 tokens with the question.
OFFICIAL_TEMPERATURE, OFFICIAL_TOP_P = 0.95, 0.7
OFFICIAL_MAX_LENGTH = 512
_BATCH = 8

PREDICTIONS, RESULTS = "generated_predictions.txt", "eval_results.json"


def evaluate(
    engine: Engine,
    encoder: PrefixEncoder,
    rows: Sequence[Row],
    settings: PTuneSettings,
    output: Path,
    *,
    greedy: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, float]:
    """Answer every question and compare; writes ``generated_predictions.txt`` and ``eval_results.json``.

    Args:
        greedy: take the most likely tokens; officially they are sampled, here with the run's seed.
    Returns:
        loss (nats a token), rouge-1, rouge-2, rouge-l, bleu-4, exact (percent of equal answers), samples.
    """
    tokenizer, max_target = engine.tokenizer, settings.target_length(engine.config.version)
    with torch.no_grad():
        prefix = split_prefix(encoder()).to(engine.device, engine.setup.prefix_dtype)
    answering = Engine(engine.model, engine.info, engine.setup, tokenizer, engine.max_length, prefix)
    sampling = SamplingParams(
        temperature=0 if greedy else OFFICIAL_TEMPERATURE, top_p=OFFICIAL_TOP_P, seed=settings.seed
    )
    loss, num_labels = 0.0, 0
    predictions, references = [], []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        samples = [make_sample(tokenizer, row, settings.max_source_length, max_target) for row in part]
        count = sum(label != IGNORED for sample in samples for label in sample.labels)
        with torch.no_grad():
            mean = prefix_loss(engine, encoder, *collate(samples, engine.config.pad_token_id))
        loss, num_labels = loss + mean.item() * count, num_labels + count
        prompts = [source_ids(tokenizer, row, settings.max_source_length, training=False) for row in part]
        longest = max(map(len, prompts))
        limit = max(min(OFFICIAL_MAX_LENGTH, engine.max_length) - longest, 1)
        answers = answering.generate(prompts, limit, sampling)
        predictions += [tokenizer.decode(ids).strip() for ids in answers]  # type: ignore[arg-type]
        references += [tokenizer.decode(target_ids(tokenizer, row.response, max_target)[0]).strip() for row in part]
        if progress:
            progress(start + len(part), len(rows), "answers")
    result = {"loss": loss / num_labels, **score(predictions, references), "samples": len(rows)}
    lines = [
        json.dumps({"labels": reference, "predict": prediction}, ensure_ascii=False)
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    write_text(output / PREDICTIONS, "\n".join(lines) + "\n")
    write_text(output / RESULTS, json.dumps(result, indent=2) + "\n")
    return result
