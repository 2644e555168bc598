"""Adapters as models of a server: who asks for which gets which, together with the others, and they come and go."""

import asyncio
import os
import threading

import httpx
import pytest
import torch

import glm_int4
from glm_int4.checkpoint.formats import layout
from glm_int4.cli.serve import Loading
from glm_int4.errors import InputError
from glm_int4.server.settings import Settings
from tests.adapters.test_applying import adapter, random
from tests.cli.test_commands import glm, refused
from tests.server.conftest import run_server

NAMES = ("sql", "law")
QUESTION = "你好 world"


def random_lora(folder, config, seed):
    """An adapter of query_key_value that makes itself heard."""
    tensors = {}
    for matrix in layout.linears(config):
        if matrix.kind == "query_key_value":
            stem = f"base_model.model.{matrix.name}"
            tensors[f"{stem}.lora_A.weight"] = random(2, matrix.in_features, seed=seed)
            tensors[f"{stem}.lora_B.weight"] = random(matrix.out_features, 2, seed=seed + 1) / 4
    return adapter(folder, tensors)


@pytest.fixture(scope="module")
def folder(v2_engine, tmp_path_factory):
    """A folder of adapters for the small ChatGLM2: those of NAMES, and one more."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate((*NAMES, "late")):
        random_lora(folder / name, v2_engine.config, 10 * seed)
    return folder


@pytest.fixture(scope="module")
def checkpoint(small_checkpoints, tmp_path_factory):
    """In INT4, whose rows have the bits that they have alone."""
    output = tmp_path_factory.mktemp("small") / "int4"
    glm_int4.quantize_checkpoint(small_checkpoints["2"], output, bits=4, group_size=32)
    return output


@pytest.fixture(scope="module")
def says(checkpoint, folder):
    """What an engine with one adapter, or none, says to the question, and to others."""

    def says(name, text=QUESTION, **options):
        given = None if name is None else folder / name
        engine = glm_int4.load(checkpoint, device="cpu", adapter=given)
        sampling = glm_int4.SamplingParams(temperature=0)
        return engine.chat([{"role": "user", "content": text}], 12, sampling, **options)

    return says


def load(checkpoint, folder, names=NAMES):
    return glm_int4.load(checkpoint, device="cpu", adapters={name: folder / name for name in names})


@pytest.fixture
def running(checkpoint, folder):
    with run_server(load(checkpoint, folder), num_slots=8) as running:
        yield running


@pytest.fixture
def changing(checkpoint, folder):
    """A server whose clients may load adapters."""
    with run_server(load(checkpoint, folder, ("sql",)), adapter_dir=folder, api_key="right") as running:
        yield running


KEY = {"Authorization": "Bearer right"}


def change(running, what, headers=KEY, **fields):
    return running.post(f"/v1/{what}_lora_adapter", json=fields, headers=headers)


def ask(running, model, text=QUESTION, **fields):
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12, "model": model}
    return running.post(json=body | fields, headers=KEY)


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_every_adapter_is_a_model_of_the_list(running):
    models = running.get("/v1/models").json()["data"]
    assert [(model["id"], model.get("parent")) for model in models] == [
        ("mini", None),
        ("sql", "mini"),
        ("law", "mini"),
    ]
    assert running.get("/v1/models/law").json() == models[2]
    missing = running.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_the_model_that_is_asked_for_answers(running, says):
    answers = {}
    for name in ("mini", *NAMES):
        response = ask(running, name)
        assert response.json()["model"] == name
        answers[name] = text_of(response)
    assert answers == {"mini": says(None)} | {name: says(name) for name in NAMES}
    assert len(set(answers.values())) == 3


def test_requests_for_different_adapters_run_in_one_batch_and_get_what_each_gets_alone(running, says):
    """With a seed, too: the logits have the same bits."""
    wishes = [
        (name, text, {"temperature": 1.2, "seed": seed})
        for seed, (name, text) in enumerate([(n, t) for n in ("mini", *NAMES) for t in (QUESTION, "price 12")])
    ]
    alone = [text_of(ask(running, name, text, **fields)) for name, text, fields in wishes]
    together, rows = [None] * len(wishes), []
    forward = running.batcher._forward
    running.batcher._forward = lambda sequences: rows.append([s.number for s in sequences]) or forward(sequences)

    def run(i):
        name, text, fields = wishes[i]
        together[i] = text_of(ask(running, name, text, **fields))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(wishes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert any(len(set(numbers)) == 3 for numbers in rows)


def test_a_name_that_is_not_served_is_not_found(running, mini_server):
    for model in ("gpt-4o-mini", "sq", "sql "):
        response = ask(running, model)
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["message"] == "expected one of the models mini, sql, law, got another"
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert ask(running, "").json()["model"] == "mini"
    assert mini_server.ask("hi", model="gpt-4o-mini", max_tokens=1)[0] == 200  # one model, no adapter


def test_completions_streams_and_scores_of_prompts_take_adapters(running, checkpoint, folder):
    fields = {"prompt": [5, 6, 7, 8, 9], "max_tokens": 6, "temperature": 0, "logprobs": 1, "echo": True}

    def complete(server, model):
        response = server.post("/v1/completions", json=fields | {"model": model})
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    found = {name: complete(running, name) for name in ("mini", *NAMES)}
    assert len({str(choice["logprobs"]["token_logprobs"]) for choice in found.values()}) == 3
    with run_server(glm_int4.load(checkpoint, device="cpu", adapter=folder / "law")) as other:
        assert complete(other, "mini") == found["law"]
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "model": "law", "max_tokens": 4}
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body | {"stream": True}) as response:
        assert all('"model":"law"' in line for line in response.iter_lines() if line.startswith("data: {"))


# --- while it runs ------------------------------------------------------------------------------------------


def test_an_adapter_of_the_folder_is_loaded_answers_and_is_unloaded(changing, says):
    assert ask(changing, "late").status_code == 404
    loaded = change(changing, "load", lora_name="late")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'late' added successfully.")
    assert text_of(ask(changing, "late")) == says("late")
    assert change(changing, "load", lora_name="other", lora_path="law", lora_int_id=None).status_code == 200
    assert text_of(ask(changing, "other")) == says("law")
    assert text_of(ask(changing, "mini")) == says(None)
    unloaded = change(changing, "unload", lora_name="late", lora_int_id=1)
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'late' removed successfully.")
    assert ask(changing, "late").status_code == 404
    models = changing.get("/v1/models", headers=KEY).json()["data"]
    assert [model["id"] for model in models] == ["mini", "sql", "other"]


def test_answers_of_an_adapter_that_is_unloaded_are_finished(changing, says, slow_model):
    slow_model(changing, 0.1)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(changing, "sql")))
    thread.start()
    changing.wait_until(lambda: any(sequence.ids for sequence in changing.batcher._running))
    assert change(changing, "unload", lora_name="sql").status_code == 200
    assert ask(changing, "sql").status_code == 404
    assert change(changing, "load", lora_name="sql", lora_path="law").status_code == 200
    assert not answers  # it runs still
    assert text_of(ask(changing, "sql")) == says("law")
    thread.join()
    assert text_of(answers[0]) == says("sql")
    assert changing.server.engine.adapters.names == ["sql"]
    assert changing.server.engine.adapters._numbers == {2}  # the first one's is free again


def test_a_request_that_comes_between_is_told_so(changing, monkeypatch):
    """Its name was found; when it joins the others, the adapter is gone."""
    pending = changing.server.worker.pending

    def late(*given, **more):
        adapters = changing.server.engine.adapters
        asyncio.run(changing.server.worker.change(lambda: changing.batcher.retire(adapters.take_away("sql"))))
        return pending(*given, **more)

    monkeypatch.setattr(changing.server.worker, "pending", late)
    response = ask(changing, "sql")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert "got sql, which is no more" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("what", "fields", "status", "says"),
    [
        ("load", {"lora_name": "sql"}, 400, "expected another name than sql, which an adapter has already"),
        (
            "load",
            {"lora_name": "mini", "lora_path": "law"},
            400,
            "expected another name than mini, which the model has",
        ),
        ("load", {"lora_name": "absent"}, 404, "got absent, which is not there"),
        ("load", {"lora_name": "a", "lora_path": "../law"}, 400, "expected letters, digits"),
        ("load", {"lora_name": "a", "lora_path": "/etc"}, 400, "expected letters, digits"),
        ("load", {"lora_name": "a", "lora_path": "owner/name"}, 400, "expected letters, digits"),
        ("load", {"lora_name": "a", "lora_path": ".."}, 400, "expected letters, digits"),
        ("load", {"lora_name": "../law"}, 400, "expected letters, digits"),
        ("load", {"lora_name": "a\n", "lora_path": "law"}, 400, "expected letters, digits"),
        ("load", {"lora_name": "away"}, 400, "got away, a link out of it"),
        ("load", {"lora_name": "empty"}, 400, "expected adapter_config.json in empty, got none"),
        ("load", {"lora_name": "broken"}, 400, "expected JSON in broken/adapter_config.json"),
        ("load", {}, 400, "expected the field lora_name"),
        ("load", {"lora_name": 5}, 400, "another value at lora_name"),
        ("unload", {"lora_name": "absent"}, 404, "expected the name of an adapter (sql here), got 'absent'"),
        ("unload", {"lora_name": "mini"}, 404, "got 'mini'"),
        ("unload", {}, 400, "expected the field lora_name"),
    ],
)
def test_what_cannot_be_loaded_is_one_line_and_changes_nothing(changing, folder, tmp_path, what, fields, status, says):
    if not (folder / "empty").exists():
        (folder / "empty").mkdir()
        (folder / "broken").mkdir()
        (folder / "broken" / "adapter_config.json").write_text("{")
        os.symlink(tmp_path, folder / "away")
    response = change(changing, what, **fields)
    message = response.json()["error"]["message"]
    assert (response.status_code, says in message) == (status, True), message
    assert str(folder.resolve()) not in message
    assert "\n" not in message
    assert changing.server.engine.adapters.names == ["sql"]


def test_loading_is_behind_the_key_and_only_where_a_folder_was_given(changing, running):
    for what in ("load", "unload"):
        assert change(changing, what, headers={}, lora_name="sql").status_code == 401
        assert change(running, what, lora_name="sql").status_code == 404
        assert f"/v1/{what}_lora_adapter" in changing.get("/openapi.json").json()["paths"]
        assert f"/v1/{what}_lora_adapter" not in running.get("/openapi.json").json()["paths"]
    assert changing.server.engine.adapters.names == ["sql"]


def test_another_name_is_not_found_where_adapters_may_come(checkpoint, folder):
    with run_server(glm_int4.load(checkpoint, device="cpu"), adapter_dir=folder) as running:
        assert ask(running, "late").status_code == 404
        assert ask(running, "mini", max_tokens=1).status_code == 200


def test_a_change_is_refused_while_the_server_ends(changing):
    changing.server.worker.stop()
    response = change(changing, "load", lora_name="late")
    assert response.status_code == 503


# --- the command line ---------------------------------------------------------------------------------------


def test_serve_takes_names_and_those_without_one_act_in_all_answers(checkpoint, folder):
    given = Loading(device="cpu", adapter=[f"sql={folder / 'sql'}:1", f"law={folder / 'law'}", str(folder / "late")])
    engine = given.load(str(checkpoint))
    assert engine.adapters.names == ["sql", "law"]
    ids = list(range(20, 30))
    assert torch.equal(engine.logits(ids), glm_int4.load(checkpoint, device="cpu", adapter=folder / "late").logits(ids))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--adapter", "a=x", "--adapter", "a=y"], "expected every adapter under a name of its own, got a twice"),
        (["--adapter", "small=x", "--served-name", "small"], "expected another name than small for an adapter"),
        (["--adapter", "a=/absent"], "expected an adapter folder or a hub id (owner/name), got /absent"),
        (["--adapter-dir", "/absent"], "expected a folder as --adapter-dir, got '/absent'"),
    ],
)
def test_what_serve_cannot_use_is_one_line(small_checkpoints, options, says):
    refused(glm("serve", small_checkpoints["2"], "--port", 0, "--device", "cpu", *options), says)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a folder as --adapter-dir"):
        Settings(model_name="a", adapter_dir=tmp_path / "absent")
