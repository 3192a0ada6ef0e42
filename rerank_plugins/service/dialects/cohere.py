"""Cohere, v1 and v2."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, FailFast, Field

from rerank_plugins.service.asking import Ask
from rerank_plugins.service.dialects.dialect import Dialect, Endpoint
from rerank_plugins.service.dialects.fields import (
    Extended,
    ModelName,
    Priority,
    Query,
    ResultWithDocument,
    ReturnDocuments,
    Texts,
    TopN,
    Whole,
    results_of,
)
from rerank_plugins.service.problems import Kind, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.service.asking import Answer
    from rerank_plugins.service.problems import Problem

DOCUMENTS_A_SEARCH_UNIT: Final = 100

Objects = Annotated[
    list[str | dict[str, Any]],
    FailFast(),
    Field(min_length=1, description="texts, or objects with a `text` or the `rank_fields`"),
]
RankFields = Annotated[
    list[str] | None, Field(max_length=100, description="fields of objects that are ranked")
]


class CohereV2Request(Extended):
    """A rerank request of Cohere's second API."""

    query: Query
    documents: Texts
    model: ModelName = None
    top_n: TopN = None
    return_documents: ReturnDocuments = None
    max_tokens_per_doc: Annotated[
        Whole | None, Field(description="ignored: the model's own max_length is what is read")
    ] = None
    priority: Priority = None


class CohereV1Request(Extended):
    """A rerank request of Cohere's first API."""

    query: Query
    documents: Objects
    model: ModelName = None
    top_n: TopN = None
    rank_fields: RankFields = None
    return_documents: ReturnDocuments = None
    max_chunks_per_doc: Annotated[Whole | None, Field(description="ignored")] = None


class ApiVersion(BaseModel):
    """Which API answered."""

    version: str


class BilledUnits(BaseModel):
    """One search unit is up to a hundred documents."""

    search_units: int


class Tokens(BaseModel):
    """Tokens that the model read."""

    input_tokens: int
    output_tokens: int


class CohereMeta(BaseModel):
    """What a request came to."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: Tokens


class CohereAnswer(BaseModel):
    """An answer of Cohere."""

    id: str
    results: list[ResultWithDocument]
    meta: CohereMeta


class CohereError(BaseModel):
    """An error of Cohere."""

    message: str


def _error_body(problem: Problem, _: int) -> object:
    return {"message": problem.message}


COHERE: Final = Dialect("cohere", CohereError, _error_body, {Kind.INVALID: 400, Kind.EMPTY: 400})


def text_of_fields(
    documents: Sequence[str | dict[str, Any]], rank_fields: Sequence[str] | None
) -> list[str]:
    """Return the text of each document: of an object its *rank_fields*, a line each.

    Raises:
        RefusedError: an object has none of the fields, or one holds no text.
    """
    # A field named a hundred times would be as many copies of it.
    fields = list(dict.fromkeys(rank_fields or ["text"]))
    texts = []
    for place, document in enumerate(documents):
        if isinstance(document, str):
            texts.append(document)
            continue
        parts = [document[name] for name in fields if document.get(name) is not None]
        if not parts or not all(isinstance(part, str | int | float) for part in parts):
            raise RefusedError(
                Kind.INVALID,
                f"documents[{place}]: expected a text, or an object with text in {fields!r:.200}",
                param="documents",
            )
        texts.append("\n".join(map(str, parts)))
    return texts


def meta_of(answer: Answer, version: str) -> dict[str, object]:
    """Return what a request came to in Cohere's units."""
    documents = sum(len(ask.documents) for ask in answer.asks)
    return {
        "api_version": {"version": version},
        "billed_units": {"search_units": math.ceil(documents / DOCUMENTS_A_SEARCH_UNIT)},
        "tokens": {"input_tokens": answer.tokens, "output_tokens": 0},
    }


def _asks_v2(request: CohereV2Request) -> list[Ask]:
    return [
        Ask(
            query=request.query,
            documents=request.documents,
            model=request.model,
            top_n=request.top_n,
            raw=bool(request.raw_scores),
            return_documents=bool(request.return_documents),
            instruction=request.instruction,
            bulk=(request.priority or 0) > 0,
        )
    ]


def _asks_v1(request: CohereV1Request) -> list[Ask]:
    return [
        Ask(
            query=request.query,
            documents=text_of_fields(request.documents, request.rank_fields),
            given=request.documents,
            model=request.model,
            top_n=request.top_n,
            raw=bool(request.raw_scores),
            return_documents=bool(request.return_documents),
            instruction=request.instruction,
        )
    ]


def _answer_v2(answer: Answer) -> object:
    return {"id": answer.id, "results": results_of(answer), "meta": meta_of(answer, "2")}


def _answer_v1(answer: Answer) -> object:
    return {"id": answer.id, "results": results_of(answer), "meta": meta_of(answer, "1")}


_EXAMPLE: Final = {
    "model": "rerank-v3.5",
    "query": "what do foxes eat?",
    "documents": ["The sky is blue.", "A red fox eats rodents."],
    "top_n": 1,
}

RERANK_V2: Final = Endpoint(
    COHERE,
    "Rank documents, as Cohere's API v2 does",
    CohereV2Request,
    _asks_v2,
    _answer_v2,
    CohereAnswer,
    _EXAMPLE,
)
RERANK_V1: Final = Endpoint(
    COHERE,
    "Rank documents, as Cohere's API v1 does",
    CohereV1Request,
    _asks_v1,
    _answer_v1,
    CohereAnswer,
    {**_EXAMPLE, "documents": [{"title": "Foxes", "text": "A red fox eats rodents."}]},
)
