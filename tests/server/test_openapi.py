"""The server's own description, and requests made up from it."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.server.conftest import run_server

EXAMPLES = int(os.environ.get("GLM_INT4_SCHEMATHESIS_EXAMPLES", "40"))


@pytest.fixture(scope="module")
def description(mini_engine):
    with run_server(mini_engine, max_new_tokens=4) as running:
        yield running, schemathesis.openapi.from_url(f"{running.url}/openapi.json")


def test_the_description_names_the_routes_and_no_422(description):
    running, _ = description
    paths = running.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/health", "/ping", "/version",
        "/metrics", "/tokenize", "/detokenize",
    }  # fmt: skip
    for operations in paths.values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert "429" in operation["responses"]


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_no_request_that_fits_or_breaks_the_description_ends_in_a_fault(description, mode):
    running, schema = description
    statuses = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode == schemathesis.GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing to get wrong

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            response = case.call(base_url=running.url)
            statuses.add(response.status_code)
            case.validate_response(response, checks=[not_a_server_error])

        check()
    assert max(statuses) < 500
    assert running.ask("3加5等于几?", max_tokens=3)[0] == 200
