"""NVIDIA NIM: passages in, logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, FailFast, Field

from rerank_plugins.service.asking import Ask
from rerank_plugins.service.dialects.dialect import Dialect, Endpoint
from rerank_plugins.service.dialects.fields import (
    Instruction,
    ModelName,
    Query,
    Sent,
    TokenUsage,
)

if TYPE_CHECKING:
    from rerank_plugins.service.asking import Answer
    from rerank_plugins.service.problems import Problem


class NimQuery(Sent):
    """The query of a request of NIM."""

    text: Query


class NimPassage(Sent):
    """A document of a request of NIM."""

    text: str


class NimRequest(Sent):
    """A ranking request of NIM."""

    query: NimQuery
    passages: Annotated[list[NimPassage], FailFast(), Field(min_length=1)]
    model: ModelName = None
    truncate: Annotated[
        Literal["NONE", "END"] | None,
        Field(description='"NONE", as where not set: refuse what is longer than the model reads'),
    ] = None
    instruction: Instruction = None


class NimRank(BaseModel):
    """One document of an answer, best first."""

    index: int
    logit: float


class NimAnswer(BaseModel):
    """An answer of NIM."""

    rankings: list[NimRank]
    usage: TokenUsage


class NimError(BaseModel):
    """An error of NIM."""

    object: Literal["error"]
    message: str
    detail: dict[str, Any]
    type: str


def _error_body(problem: Problem, status: int) -> object:
    return {
        "object": "error",
        "message": problem.message,
        "detail": {},
        "type": "invalid_request_error" if status < 500 else "internal_server_error",
    }


NIM: Final = Dialect("nim", NimError, _error_body)


def _asks(request: NimRequest) -> list[Ask]:
    return [
        Ask(
            query=request.query.text,
            documents=[passage.text for passage in request.passages],
            model=request.model,
            raw=True,
            instruction=request.instruction,
            uncut="" if request.truncate == "END" else "truncate",
        )
    ]


def _answer(answer: Answer) -> object:
    return {
        "rankings": [{"index": each.index, "logit": each.logit} for each in answer.ranking],
        "usage": answer.usage,
    }


RANKING: Final = Endpoint(
    NIM,
    "Rank passages, as NVIDIA NIM does",
    NimRequest,
    _asks,
    _answer,
    NimAnswer,
    {
        "query": {"text": "what do foxes eat?"},
        "passages": [{"text": "The sky is blue."}, {"text": "A red fox eats rodents."}],
        "truncate": "END",
    },
)
