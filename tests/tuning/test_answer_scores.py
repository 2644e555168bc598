"""The official figures, on texts whose figures can be told by hand."""

import pytest

from glm_int4.tuning.answer_scores import score


def test_equal_texts_have_full_marks():
    assert score(["今天天气很好,我们去公园"], ["今天天气很好,我们去公园"]) == pytest.approx(
        {"rouge-1": 100, "rouge-2": 100, "rouge-l": 100, "bleu-4": 100, "exact": 100}, abs=1e-3
    )


def test_an_empty_answer_has_none_and_counts():
    full, half = score(["你好世界啊"], ["你好世界啊"]), score(["你好世界啊", ""], ["你好世界啊", "你好"])
    assert half == pytest.approx({name: value / 2 for name, value in full.items()})


def test_rouge_counts_words_and_bleu_characters():
    result = score(["我们喜欢苹果"], ["我们喜欢香蕉"])
    assert result["rouge-1"] == pytest.approx(100 * 2 / 3, abs=1e-3)  # 我们 喜欢 of 我们 喜欢 苹果
    assert result["rouge-2"] == pytest.approx(50, abs=1e-3)
    assert result["rouge-l"] == pytest.approx(100 * 2 / 3, abs=1e-3)
    # 4 of 6 characters, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; equal lengths.
    assert result["bleu-4"] == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, abs=1e-3)
    assert result["exact"] == 0
