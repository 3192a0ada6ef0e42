"""Fields that several dialects share. Unknown ones are ignored: clients send what nobody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.service.asking import Answer


class Sent(BaseModel):
    """What a client sends: JSON types as they are, no text for a number."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class TextDocument(Sent):
    """A document as an object; other fields are kept for the answer."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    text: str


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# JSON may write a whole number as 3.0.
Whole = Annotated[int, BeforeValidator(_whole)]
Natural = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
Positive = Annotated[int, Field(ge=1), BeforeValidator(_whole)]

Query = Annotated[str, Field(min_length=1, pattern=r"\S", description="what is ranked by")]
# FailFast: ten million wrong documents are one complaint.
Texts = Annotated[list[str], FailFast(), Field(min_length=1, description="what is ranked")]
Documents = Annotated[
    list[str | TextDocument],
    FailFast(),
    Field(min_length=1, description="texts, or objects with a `text`"),
]
TopN = Annotated[Positive | None, Field(description="how many to keep; all where not set")]
ModelName = Annotated[str | None, Field(description="a served model; the first where not set")]
Instruction = Annotated[
    str | None,
    Field(min_length=1, pattern=r"\S", description="what a model is told to look for, if it can"),
]
RawScores = Annotated[bool | None, Field(description="logits in place of scores")]
ReturnDocuments = Annotated[bool | None, Field(description="hand the documents back")]
Priority = Annotated[Whole | None, Field(description="above 0: others may go first")]


class Extended(Sent):
    """What this project adds to every dialect with ``results``."""

    instruction: Instruction = None
    raw_scores: RawScores = None


def texts_of(documents: Sequence[str | TextDocument]) -> list[str]:
    """Return the texts of documents, in order."""
    return [each if isinstance(each, str) else each.text for each in documents]


def _as_object(given: object) -> object:
    """Return a document as an object: as it came, or with its ``text`` alone."""
    if isinstance(given, TextDocument):
        return given.model_dump()
    return {"text": given} if isinstance(given, str) else given


class TokenUsage(BaseModel):
    """Tokens that the model read for the request, cached pairs included."""

    prompt_tokens: int
    total_tokens: int


class TextObject(BaseModel):
    """A document of an answer."""

    model_config = ConfigDict(extra="allow")

    text: Annotated[
        Any, Field(description="its text; an object that `rank_fields` name may have none")
    ] = None


class Result(BaseModel):
    """One document of an answer."""

    index: int
    relevance_score: float


class ResultWithDocument(Result):
    """One document of an answer, with its text where that was asked for."""

    document: TextObject | None = None


def results_of(answer: Answer) -> list[dict[str, object]]:
    """Return the ``results`` of most dialects, with documents as objects."""
    ask = answer.ask
    found = []
    for document in answer.ranking:
        result: dict[str, object] = {
            "index": document.index,
            "relevance_score": ask.score(document),
        }
        if ask.return_documents:
            result["document"] = _as_object(ask.original(document))
        found.append(result)
    return found
