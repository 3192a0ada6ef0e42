"""The OpenAPI document: whole, with examples that work, and true of every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from rerank_plugins.reranker import Reranker
from rerank_plugins.service.app import create_app
from rerank_plugins.service.dialects.paths import PATHS
from rerank_plugins.testing import FakeScorer
from tests.service.conftest import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

OBJECTS = ("/rerank", "/v1/rerank", "/cohere/v1/rerank")
"""Paths that take objects with text in any field, named by another one."""


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def test_every_path_is_in_the_document_with_examples_that_work(
    client: httpx.Client, document: dict[str, Any]
) -> None:
    for path, endpoints in PATHS.items():
        operation = document["paths"][path]["post"]
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        assert len(examples) == len(endpoints)
        assert {"200", "400", "401", "413", "429", "503", "504"} <= set(operation["responses"])
        for example in examples.values():
            answer = client.post(path, json=example["value"])
            assert answer.status_code == 200, answer.text
    assert {"/health", "/ready", "/info", "/v1/models", "/metrics"} <= set(document["paths"])
    assert document["security"] == [{}, {"bearer": []}]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            for name, value in part.items():
                if name == "$ref":
                    yield value
                else:
                    yield from references(value)
        elif isinstance(part, list):
            for value in part:
                yield from references(value)

    for reference in references(document):
        found = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]


@pytest.mark.slow
def test_no_answer_is_at_odds_with_the_document() -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    scorer = FakeScorer(instruction="find")
    app = create_app({"fake": Reranker(scorer)}, registry=CollectorRegistry())
    with running(app) as client:
        url = str(client.base_url).rstrip("/")
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        checked = 0
        for found in schema.get_all_operations():
            operation = found.ok()
            seen = 0

            @settings(
                max_examples=12,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                nonlocal seen
                seen += 1
                # Where one field decides what another may be, no schema can say it.
                free = case.path.endswith("/score") or case.path in OBJECTS
                excluded = [positive_data_acceptance] if free else []
                case.call_and_validate(base_url=url, excluded_checks=excluded)

            check()
            checked += seen > 0
        assert checked >= len(PATHS)
        assert client.get("/ready").status_code == 200
