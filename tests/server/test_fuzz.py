"""Requests made from our own openapi.json, valid and broken ones: no 500, answers as described."""

import pytest

from tests.server.conftest import KEY

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")

from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
HEADERS = {"Authorization": f"Bearer {KEY}"}
PATHS = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_breaks_the_server(server, path, mode):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=HEADERS)
    wanted = schemathesis.GenerationMode[mode]
    num_made = 0

    @hypothesis.given(case=schema[path]["POST"].as_strategy(generation_mode=wanted))
    @hypothesis.settings(
        max_examples=5,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def check(case):
        nonlocal num_made
        num_made += 1
        body = case.body
        if isinstance(body, dict) and ("prompt" in body or "messages" in body):
            body["max_tokens"] = 1  # the interpreter is slow
            body.pop("max_completion_tokens", None)
        case.call_and_validate(headers=HEADERS, checks=CHECKS, timeout=120)

    check()
    assert num_made >= 5
