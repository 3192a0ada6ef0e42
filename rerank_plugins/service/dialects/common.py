"""The bare paths, where nobody says whose client it is: what Jina, Cohere v1 and vLLM all read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, Field

from rerank_plugins.service.asking import Ask
from rerank_plugins.service.dialects.cohere import (
    CohereMeta,
    Objects,
    RankFields,
    meta_of,
    text_of_fields,
)
from rerank_plugins.service.dialects.dialect import Dialect, Endpoint
from rerank_plugins.service.dialects.fields import (
    Extended,
    ModelName,
    Natural,
    Priority,
    Query,
    ResultWithDocument,
    ReturnDocuments,
    TokenUsage,
    results_of,
)
from rerank_plugins.service.dialects.infinity import OpenAIProblem, openai_error
from rerank_plugins.service.dialects.vllm import (  # noqa: TC001  pydantic reads them
    Ignored,
    TruncationSide,
    UseActivation,
)

if TYPE_CHECKING:
    from rerank_plugins.service.asking import Answer
    from rerank_plugins.service.problems import Problem


class CommonRequest(Extended):
    """A rerank request of Jina, Cohere's first API, Infinity or vLLM."""

    query: Query
    documents: Objects
    model: ModelName = None
    top_n: Annotated[Natural | None, Field(description="how many to keep; all where 0")] = None
    rank_fields: RankFields = None
    return_documents: ReturnDocuments = None
    use_activation: UseActivation = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: Ignored = None
    max_tokens_per_query: Ignored = None
    max_tokens_per_doc: Ignored = None
    max_chunks_per_doc: Ignored = None
    priority: Priority = None


class CommonAnswer(BaseModel):
    """An answer that Jina's, Cohere's and vLLM's clients read, each what it knows."""

    id: str
    object: Literal["rerank"]
    created: int
    model: str
    usage: TokenUsage
    results: list[ResultWithDocument]
    meta: CohereMeta


class CommonError(BaseModel):
    """An error where every client finds its own: OpenAI's, Cohere's, Jina's."""

    error: OpenAIProblem
    message: str
    detail: str


def _error_body(problem: Problem, status: int) -> object:
    return {
        **openai_error(problem, status),
        "message": problem.message,
        "detail": problem.message,
    }


COMMON: Final = Dialect("common", CommonError, _error_body)


def _asks(request: CommonRequest) -> list[Ask]:
    return [
        Ask(
            query=request.query,
            documents=text_of_fields(request.documents, request.rank_fields),
            given=request.documents,
            model=request.model,
            top_n=request.top_n or None,
            raw=bool(request.raw_scores) or request.use_activation is False,
            # Jina and vLLM hand them back unasked; Cohere's clients do not mind.
            return_documents=request.return_documents is not False,
            instruction=request.instruction,
            bulk=(request.priority or 0) > 0,
            uncut="truncation_side" if request.truncation_side == "left" else "",
        )
    ]


def _answer(answer: Answer) -> object:
    return {
        "id": answer.id,
        "object": "rerank",
        "created": answer.created,
        "model": answer.model,
        "usage": answer.usage,
        "results": results_of(answer),
        "meta": meta_of(answer, "1"),
    }


RERANK: Final = Endpoint(
    COMMON,
    "Rank documents, for clients of Jina, Cohere v1, Infinity and vLLM",
    CommonRequest,
    _asks,
    _answer,
    CommonAnswer,
    {
        "query": "what do foxes eat?",
        "documents": ["The sky is blue.", "A red fox eats rodents."],
        "top_n": 1,
        "return_documents": True,
    },
)
