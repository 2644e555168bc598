"""The official figures of an evaluation: ROUGE of Chinese words and BLEU-4 of characters, 0 to 100."""

from collections.abc import Sequence

from glm_int4.errors import InputError

INSTALL = 'pip install "glm-int4[ptune]"'


def check_metrics() -> None:
    """Raise InputError where a library that the figures need is not installed."""
    try:
        import jieba  # noqa: F401
        import nltk  # noqa: F401
        import rouge_chinese  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"expected jieba, rouge-chinese and nltk for an evaluation, got none of the name {error.name}; "
            f"install them: {INSTALL}"
        ) from error


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1, ROUGE-2, ROUGE-L (F) and BLEU-4, and the share of equal texts, in percent.

    An empty prediction scores 0, where the official code stops.
    """
    import logging

    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel(logging.WARNING)
    totals = {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0, "bleu-4": 0.0, "exact": 0.0}
    rouge, smoothing = Rouge(), SmoothingFunction().method3
    for prediction, reference in zip(predictions, references, strict=True):
        words = [" ".join(jieba.cut(text)) for text in (prediction, reference)]
        if all(text.strip() for text in words):
            for name, value in rouge.get_scores(*words)[0].items():
                totals[name] += 100 * value["f"]
            totals["bleu-4"] += 100 * sentence_bleu([list(reference)], list(prediction), smoothing_function=smoothing)
        totals["exact"] += 100 * (prediction.strip() == reference.strip())
    return {name: total / len(predictions) for name, total in totals.items()}
