"""Every case of cases.py at a real server of its model."""

import re

import httpx
import pytest

from tests.server.cases import CASES
from tests.server.conftest import run_server


@pytest.fixture(scope="module")
def servers(mini_engine, v2_engine, v3_engine):
    """A running server for every version, and a strict one."""
    with (
        run_server(mini_engine) as first,
        run_server(mini_engine, strict=True) as strict,
        run_server(v2_engine) as second,
        run_server(v3_engine) as third,
    ):
        yield {("1", False): first, ("1", True): strict, ("2", False): second, ("3", False): third}


def prompt_ids(text, tokenizer):
    """The ids of a prompt as cases write it."""
    text = text.replace("⏎", "\n")
    if tokenizer.version == "1":
        context, beginning = text.split("[gMASK]<sop>")
        return [*tokenizer.encode(context), tokenizer.gmask_id, tokenizer.sop_id, *tokenizer.encode(beginning)]
    if tokenizer.version == "2":
        prompt, _, beginning = text.partition("‖")
        return [tokenizer.gmask_id, tokenizer.sop_id, *tokenizer.encode(prompt), *tokenizer.encode(beginning)]
    ids = [tokenizer.gmask_id, tokenizer.sop_id]
    for role, message in re.findall(r"<\|(\w+)\|>([^<]*)", text):
        line, newline, content = message.partition("\n")
        ids += [tokenizer.role_ids[role], *tokenizer.encode(line + newline), *tokenizer.encode(content)]
    return ids


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group} {case.row()[:60]}")
def test_what_is_sent_comes_to_what_the_table_says(servers, monkeypatch, case):
    running, prompts = servers[case.version, case.strict], []
    make = running.batcher.sequence
    monkeypatch.setattr(
        running.batcher, "sequence", lambda prompt, *more: prompts.append(prompt) or make(prompt, *more)
    )
    headers = {"Content-Type": "application/json"} | case.headers
    response = httpx.request(
        case.method,
        f"{running.url}{case.path}",
        content=case.body,
        headers={name: value for name, value in headers.items() if value},
        timeout=60,
    )
    assert response.status_code == case.status, response.text
    assert not response.content or case.method != "HEAD"
    assert case.says in (response.json()["error"]["message"] if case.status >= 400 else response.text)
    assert response.headers.get("X-Ignored-Fields", "") == case.ignored
    assert case.answers.items() <= response.headers.items()
    if case.becomes:
        assert prompts == [prompt_ids(case.becomes, running.server.engine.tokenizer)]
