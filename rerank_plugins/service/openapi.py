"""The OpenAPI document: bodies are read by hand, so their schemas are told by hand."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from rerank_plugins.service.dialects.paths import PATHS
from rerank_plugins.service.problems import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import BaseModel

    from rerank_plugins.service.dialects.dialect import AnyEndpoint

_REF: Final = "#/components/schemas/{model}"
_MEANINGS: Final = {
    Kind.MALFORMED: "The body is no JSON",
    Kind.INVALID: "A field is wrong, or there is too much of something",
    Kind.EMPTY: "There are no documents",
    Kind.TOO_LARGE: "The body is too long",
    Kind.UNAUTHORIZED: "A key is needed",
    Kind.UNKNOWN_MODEL: "The model is not served",
    Kind.OVERLOADED: "Too much is waiting; Retry-After says when to come back",
    Kind.FAILED: "The model failed",
    Kind.OUT_OF_MEMORY: "The model has no memory for it",
    Kind.UNAVAILABLE: "The service is loading or shutting down",
    Kind.TIMEOUT: "The deadline passed",
}


class ServiceApp(FastAPI):
    """A FastAPI application whose document has the schemas of `PATHS` too."""

    def openapi(self) -> dict[str, Any]:
        """Return the document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            requests = {e.request for endpoints in PATHS.values() for e in endpoints}
            schemas = _schemas(sorted(requests, key=lambda each: each.__name__))
            parts = document.setdefault("components", {})
            parts.setdefault("schemas", {}).update(schemas)
            parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            # Either works: a service may have no keys.
            document["security"] = [{}, {"bearer": []}]
            self.openapi_schema = document
        return self.openapi_schema


def _schemas(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    _, found = models_json_schema(
        [(model, "validation") for model in models], by_alias=True, ref_template=_REF
    )
    schemas: dict[str, Any] = found["$defs"]
    return schemas


def request_body(endpoints: tuple[AnyEndpoint, ...]) -> dict[str, Any]:
    """Return what a path takes, with an example of each kind."""
    refs = [{"$ref": _REF.format(model=each.request.__name__)} for each in endpoints]
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": refs[0] if len(refs) == 1 else {"anyOf": refs},
                "examples": {
                    each.dialect.name: {"summary": each.summary, "value": each.example}
                    for each in endpoints
                },
            }
        },
    }


def responses(endpoints: tuple[AnyEndpoint, ...]) -> dict[int | str, dict[str, Any]]:
    """Return what a path answers, by status code."""
    meanings: dict[int, list[str]] = defaultdict(list)
    for endpoint in endpoints:
        for kind, meaning in _MEANINGS.items():
            status = endpoint.dialect.status(kind)
            if meaning not in meanings[status]:
                meanings[status].append(meaning)
    errors = _one_of([each.dialect.error_schema for each in endpoints])
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": errors, "description": "; ".join(what)}
        for status, what in sorted(meanings.items())
    }
    answers = _one_of([each.response for each in endpoints])
    return {200: {"model": answers, "description": "The ranking, best first"}, **found}


def _one_of(models: list[Any]) -> Any:  # noqa: ANN401  a type made at run time
    union = models[0]
    for model in models[1:]:
        union = union | model
    return union
