"""lm-eval's ``local-completions``, which has texts scored by a server, beside its class for models of transformers."""

import json

import pytest
from transformers import AutoTokenizer

import glm_int4.hf  # noqa: F401
from tests.server.conftest import run_server

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'lm-eval[api]' accelerate")
huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs accelerate: pip install accelerate")
requests = pytest.importorskip("lm_eval.models.openai_completions", reason="needs the extra api of lm-eval")

pytestmark = pytest.mark.slow(60)

SUMS = {"3加5等于几?": "8", "4加5等于几?": "9", "What is 12 plus 30?": "42", "我叫小明。我叫什么名字?": "小明"}
OPTIONS = {"add_bos_token": True, "batch_size": 2}
# The server keeps keys and values in half precision, and reads prompts of one length alone.
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def both(mini_engine, mini_int4, tmp_path_factory):
    """The same checkpoint behind a server and in transformers."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    AutoTokenizer.from_pretrained(mini_int4, add_bos_token=True).save_pretrained(tokenizer)
    with run_server(mini_engine) as running:
        served = requests.LocalCompletionsAPI(
            base_url=f"{running.url}/v1/completions",
            model="mini",
            tokenizer=str(tokenizer),
            tokenizer_backend="huggingface",
            max_length=256,
            max_retries=1,
            **OPTIONS,
        )
        yield served, huggingface.HFLM(pretrained=str(mini_int4), device="cpu", **OPTIONS)


def test_texts_have_the_same_log_probabilities(both):
    pairs = [*SUMS.items(), ("三月有31天。", "四月有30天。"), ("我叫小明。我叫", "什么"), ("hello", " world")]
    asked = [lm_eval.api.instance.Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    served, local = (model.loglikelihood(asked) for model in both)
    assert [total for total, _ in served] == pytest.approx([total for total, _ in local], abs=TOLERANCE, rel=0.01)
    assert [greedy for _, greedy in served] == [greedy for _, greedy in local]
    assert {greedy for _, greedy in served} == {True, False}


def test_tasks_have_the_same_results(both, tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in SUMS.items()))
    data = {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path)}
    source = {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test", "target_delimiter": ""}
    source |= {"doc_to_text": "{{question}}"}
    choices = [*SUMS.values()]
    tasks = [
        source
        | {
            "task": "choosing",
            "output_type": "multiple_choice",
            "doc_to_choice": choices,
            "doc_to_target": f"{{{{{choices}.index(answer)}}}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        source
        | {
            "task": "continuing",
            "output_type": "loglikelihood",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
        },
    ]
    results = [lm_eval.simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0)["results"] for model in both]
    for task, metrics in (("choosing", ("acc", "acc_norm")), ("continuing", ("perplexity", "acc"))):
        served, local = ([found[task][f"{metric},none"] for metric in metrics] for found in results)
        assert served == pytest.approx(local, rel=0.02)
        assert served[0] > 0
