"""Jina: documents come back as objects unless the client says no."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

from rerank_plugins.service.asking import Ask
from rerank_plugins.service.dialects.dialect import Dialect, Endpoint
from rerank_plugins.service.dialects.fields import (
    Documents,
    Extended,
    ModelName,
    Query,
    ResultWithDocument,
    ReturnDocuments,
    TokenUsage,
    TopN,
    results_of,
    texts_of,
)

if TYPE_CHECKING:
    from rerank_plugins.service.asking import Answer
    from rerank_plugins.service.problems import Problem


class JinaRequest(Extended):
    """A rerank request of Jina."""

    query: Query
    documents: Documents
    model: ModelName = None
    top_n: TopN = None
    return_documents: ReturnDocuments = None


class JinaAnswer(BaseModel):
    """An answer of Jina."""

    model: str
    usage: TokenUsage
    results: list[ResultWithDocument]


class DetailError(BaseModel):
    """An error of Jina."""

    detail: str


def _error_body(problem: Problem, _: int) -> object:
    return {"detail": problem.message}


JINA: Final = Dialect("jina", DetailError, _error_body)


def _asks(request: JinaRequest) -> list[Ask]:
    return [
        Ask(
            query=request.query,
            documents=texts_of(request.documents),
            given=request.documents,
            model=request.model,
            top_n=request.top_n,
            raw=bool(request.raw_scores),
            return_documents=request.return_documents is not False,
            instruction=request.instruction,
        )
    ]


def _answer(answer: Answer) -> object:
    return {"model": answer.model, "usage": answer.usage, "results": results_of(answer)}


RERANK: Final = Endpoint(
    JINA,
    "Rank documents, as Jina does",
    JinaRequest,
    _asks,
    _answer,
    JinaAnswer,
    {
        "model": "jina-reranker-v2-base-multilingual",
        "query": "what do foxes eat?",
        "documents": ["The sky is blue.", {"text": "A red fox eats rodents."}],
        "top_n": 1,
    },
)
