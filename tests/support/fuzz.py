"""Requests made from the server's own OpenAPI description, and what may answer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
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


def fuzz(
    base: str, each: int, number: int, model: str, tokens: int = 8
) -> Counter[str]:
    """Send `each` requests of either kind to every operation; count the answers.

    Valid and invalid requests in equal parts. In half of those that could
    reach the engine the model's name is put in, and the limit on new tokens
    kept low; the other half goes as it was made.

    Raises:
        Whatever schemathesis finds: a 5xx, or an answer that the description
        does not describe.
    """
    schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
    answers: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                strategy = operation.as_strategy(generation_mode=mode)
                _run(strategy, base, each, number, model, tokens, answers)
            except Unsatisfiable:
                continue  # nothing about such a request can be wrong
    return answers


def _run(
    strategy: st.SearchStrategy[Any],
    base: str,
    each: int,
    number: int,
    model: str,
    tokens: int,
    answers: Counter[str],
) -> None:
    @seed(number)
    @settings(
        max_examples=each,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=strategy, real=st.booleans())
    def one(case: Any, real: bool) -> None:
        if real and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = model
            case.body["max_tokens"] = tokens
            case.body.pop("max_completion_tokens", None)
        response = case.call(base_url=base)
        answers[f"{case.operation.label} {response.status_code}"] += 1
        case.validate_response(response, checks=CHECKS)

    one()
