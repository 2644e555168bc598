"""lm-eval's own class for models of transformers, on the mini model."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import glm_int4.hf  # noqa: F401
from tests.conftest import MINI

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install lm-eval accelerate")
huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs accelerate: pip install accelerate")

pytestmark = pytest.mark.slow(60)

SUMS = {"3加5等于几?": "8", "4加5等于几?": "9", "5加6等于几?": "11"}


def task(file, name, **settings):
    data = {"data_files": {"test": str(file)}, "cache_dir": str(file.parent)}
    source = {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
    return {"task": name, "doc_to_text": "{{question}}", **source, **settings}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    file = tmp_path_factory.mktemp("lm-eval") / "sums.jsonl"
    file.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in SUMS.items()))
    choices = list(SUMS.values())
    return [
        task(
            file,
            "choosing",
            output_type="multiple_choice",
            doc_to_choice=choices,
            doc_to_target=f"{{{{{choices}.index(answer)}}}}",
            target_delimiter="",
            metric_list=[{"metric": "acc"}],
        ),
        task(
            file,
            "answering",
            output_type="generate_until",
            doc_to_target="{{answer}}",
            generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
            metric_list=[{"metric": "exact_match"}],
        ),
    ]


def test_questions_in_the_chats_format_are_answered(hf_mini, tasks):
    tokenizer = AutoTokenizer.from_pretrained(MINI, split_special_tokens=False)
    model = huggingface.HFLM(pretrained=hf_mini, tokenizer=tokenizer, batch_size=2)
    results = lm_eval.simple_evaluate(model=model, tasks=tasks, apply_chat_template=True, bootstrap_iters=0)["results"]
    assert results["choosing"]["acc,none"] == results["answering"]["exact_match,none"] == 1


def test_texts_are_scored_as_the_engine_scores_them(mini_int4, packed):
    model = huggingface.HFLM(pretrained=str(mini_int4), device="cpu", add_bos_token=True, batch_size=2)
    context, rest = "三月有31天。", "四月有30天。"
    request = lm_eval.api.instance.Instance("loglikelihood", {}, (context, rest), 0)
    ((total, _),) = model.loglikelihood([request])
    engine = packed[1]
    ids = [*engine.text_prefix, *engine.tokenizer.encode(context + rest)]
    start = len(engine.text_prefix) + len(engine.tokenizer.encode(context))
    log_p = engine.logits(ids)[0].log_softmax(-1)
    expected = sum(log_p[i - 1, ids[i]].item() for i in range(start, len(ids)))
    assert total == pytest.approx(expected, rel=0.01)
    assert isinstance(model.model, AutoModelForCausalLM.from_pretrained(mini_int4).__class__)
