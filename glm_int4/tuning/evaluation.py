"""How well a model answers a file of questions with what was trained beside it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from glm_int4.errors import InputError
from glm_int4.generation.engine import Engine
from glm_int4.generation.sampling import SamplingParams
from glm_int4.tuning.answer_scores import score
from glm_int4.tuning.data import Example
from glm_int4.tuning.log import write_text
from glm_int4.tuning.methods.method import Method
from glm_int4.tuning.samples import Preparation, Question, Sample, collate

# Officially answers are sampled, up to 512 tokens with the question.
OFFICIAL_TEMPERATURE, OFFICIAL_TOP_P = 0.95, 0.7
OFFICIAL_MAX_LENGTH = 512
_BATCH = 8

PREDICTIONS, RESULTS = "generated_predictions.txt", "eval_results.json"

Progress = Callable[[int, int, str], None]


def evaluate(
    trained: Method,
    preparation: Preparation,
    examples: Sequence[Example],
    output: Path,
    *,
    seed: int,
    greedy: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Answer every question and compare; writes ``generated_predictions.txt`` and ``eval_results.json``.

    Args:
        seed: of the answers, which are officially sampled. greedy: take the most likely tokens instead.
    Returns:
        loss (nats a token), rouge-1, rouge-2, rouge-l, bleu-4, exact (percent of equal answers), samples.
    Raises:
        InputError: no question, or no answer, is short enough.
    """
    samples = [sample for example in examples for sample in preparation.samples(example)]
    questions = [question for example in examples for question in preparation.questions(example)]
    if not samples or not questions:
        raise InputError(
            f"expected answers within {preparation.max_source_length} and {preparation.max_target_length} tokens in "
            "the evaluation file, got none; raise --max-source-length and --max-target-length"
        )
    tokenizer = preparation.tokenizer
    sampling = SamplingParams(temperature=0 if greedy else OFFICIAL_TEMPERATURE, top_p=OFFICIAL_TOP_P, seed=seed)
    with trained.answering() as engine:
        loss = _mean_loss(trained, samples, engine.config.pad_token_id)
        answers = _answers(engine, questions, sampling, preparation.max_target_length, progress)
    predictions = [tokenizer.decode(ids).strip() for ids in answers]
    references = [tokenizer.decode(question.answer).strip() for question in questions]
    result = {"loss": loss, **score(predictions, references), "samples": len(questions)}
    lines = [
        json.dumps({"labels": reference, "predict": prediction}, ensure_ascii=False)
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    write_text(output / PREDICTIONS, "\n".join(lines) + "\n")
    write_text(output / RESULTS, json.dumps(result, indent=2) + "\n")
    return result


@torch.no_grad()
def _mean_loss(trained: Method, samples: Sequence[Sample], pad_id: int) -> float:
    """Nats a label."""
    loss, num_labels = 0.0, 0
    for start in range(0, len(samples), _BATCH):
        part = samples[start : start + _BATCH]
        count = sum(sample.num_labels for sample in part)
        loss, num_labels = loss + trained.loss(*collate(part, pad_id)).item() * count, num_labels + count
    return loss / num_labels


def _answers(
    engine: Engine,
    questions: Sequence[Question],
    sampling: SamplingParams,
    max_target_length: int,
    progress: Progress | None,
) -> list[list[int]]:
    """Ids of the answers to all questions, a batch at a time."""
    answers: list[list[int]] = []
    for start in range(0, len(questions), _BATCH):
        prompts = [question.prompt for question in questions[start : start + _BATCH]]
        longest = max(map(len, prompts))
        limit = max(min(max(OFFICIAL_MAX_LENGTH - longest, max_target_length), engine.max_length - longest), 1)
        answers += engine.generate(prompts, limit, sampling)  # type: ignore[arg-type]
        if progress:
            progress(len(answers), len(questions), "answers")
    return answers
