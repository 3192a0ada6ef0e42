"""Infinity: a returned ``document`` is a string."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel

from rerank_plugins.service.asking import Ask
from rerank_plugins.service.dialects.dialect import Dialect, Endpoint
from rerank_plugins.service.dialects.fields import (
    Extended,
    ModelName,
    Query,
    Result,
    ReturnDocuments,
    Texts,
    TokenUsage,
    TopN,
)
from rerank_plugins.service.problems import Kind

if TYPE_CHECKING:
    from rerank_plugins.service.asking import Answer
    from rerank_plugins.service.problems import Problem


class InfinityRequest(Extended):
    """A rerank request of Infinity."""

    query: Query
    documents: Texts
    model: ModelName = None
    return_documents: ReturnDocuments = None
    top_n: TopN = None


class InfinityResult(Result):
    """One document of an answer of Infinity."""

    document: str | None = None


class InfinityAnswer(BaseModel):
    """An answer of Infinity."""

    object: Literal["rerank"]
    results: list[InfinityResult]
    model: str
    usage: TokenUsage
    id: str
    created: int


class OpenAIProblem(BaseModel):
    """What is in an `OpenAIError`."""

    message: str
    type: str
    param: str | None
    code: int


class OpenAIError(BaseModel):
    """An error as OpenAI, Infinity and vLLM have it."""

    error: OpenAIProblem


_TYPES: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    413: "RequestTooLargeError",
    422: "BadRequestError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}


def openai_error(problem: Problem, status: int) -> dict[str, object]:
    """Return an error with message, type, param and code."""
    kind = _TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return {
        "error": {
            "message": problem.message,
            "type": kind,
            "param": problem.param,
            "code": status,
        }
    }


INFINITY: Final = Dialect("infinity", OpenAIError, openai_error, {Kind.UNKNOWN_MODEL: 400})


def _asks(request: InfinityRequest) -> list[Ask]:
    return [
        Ask(
            query=request.query,
            documents=request.documents,
            model=request.model,
            top_n=request.top_n,
            raw=bool(request.raw_scores),
            return_documents=bool(request.return_documents),
            instruction=request.instruction,
        )
    ]


def _answer(answer: Answer) -> object:
    ask = answer.ask
    results: list[dict[str, object]] = [
        {"relevance_score": ask.score(each), "index": each.index} for each in answer.ranking
    ]
    if ask.return_documents:
        for result, document in zip(results, answer.ranking, strict=True):
            result["document"] = document.text
    return {
        "object": "rerank",
        "results": results,
        "model": answer.model,
        "usage": answer.usage,
        "id": f"infinity-{answer.id}",
        "created": answer.created,
    }


RERANK: Final = Endpoint(
    INFINITY,
    "Rank documents, as Infinity does",
    InfinityRequest,
    _asks,
    _answer,
    InfinityAnswer,
    {
        "query": "what do foxes eat?",
        "documents": ["The sky is blue.", "A red fox eats rodents."],
        "return_documents": True,
    },
)
