"""Text Embeddings Inference: ``texts`` in, a bare list out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, Field

from rerank_plugins.service.asking import Ask
from rerank_plugins.service.dialects.dialect import Dialect, Endpoint
from rerank_plugins.service.dialects.fields import (
    Instruction,
    ModelName,
    Query,
    RawScores,
    Sent,
    Texts,
)
from rerank_plugins.service.problems import Kind

if TYPE_CHECKING:
    from rerank_plugins.service.asking import Answer
    from rerank_plugins.service.problems import Problem


class TeiRequest(Sent):
    """A rerank request of TEI. Every text is in the answer: it knows no ``top_n``."""

    query: Query
    texts: Texts
    truncate: Annotated[
        bool | None, Field(description="false: refuse a text that is longer than the model reads")
    ] = None
    truncation_direction: Annotated[
        Literal["right", "left", "Right", "Left"] | None,
        Field(description='"left" is refused where a text is cut'),
    ] = None
    raw_scores: RawScores = None
    return_text: bool | None = None
    model: ModelName = None
    instruction: Instruction = None


class TeiRank(BaseModel):
    """One text of an answer, best first."""

    index: int
    score: float
    text: str | None = None


class TeiError(BaseModel):
    """An error of TEI."""

    error: str
    error_type: str


_ERROR_TYPES: Final = {
    Kind.EMPTY: "empty",
    Kind.OVERLOADED: "overloaded",
    Kind.UNAVAILABLE: "unhealthy",
    Kind.FAILED: "backend",
    Kind.OUT_OF_MEMORY: "backend",
    Kind.TIMEOUT: "backend",
}


def _error_body(problem: Problem, _: int) -> object:
    return {
        "error": problem.message,
        "error_type": _ERROR_TYPES.get(problem.kind, "validation"),
    }


TEI: Final = Dialect(
    "tei",
    TeiError,
    _error_body,
    {Kind.EMPTY: 400, Kind.FAILED: 424, Kind.OUT_OF_MEMORY: 424},
)


def _asks(request: TeiRequest) -> list[Ask]:
    left = (request.truncation_direction or "").lower() == "left"
    uncut = "truncation_direction" if left else "truncate" if request.truncate is False else ""
    return [
        Ask(
            query=request.query,
            documents=request.texts,
            model=request.model,
            raw=bool(request.raw_scores),
            return_documents=bool(request.return_text),
            instruction=request.instruction,
            uncut=uncut,
        )
    ]


def _answer(answer: Answer) -> object:
    ask = answer.ask
    if ask.return_documents:
        return [
            {"index": each.index, "text": each.text, "score": ask.score(each)}
            for each in answer.ranking
        ]
    return [{"index": each.index, "score": ask.score(each)} for each in answer.ranking]


RERANK: Final = Endpoint(
    TEI,
    "Rank texts, as Text Embeddings Inference does",
    TeiRequest,
    _asks,
    _answer,
    list[TeiRank],
    {"query": "what do foxes eat?", "texts": ["The sky is blue.", "A red fox eats rodents."]},
)
