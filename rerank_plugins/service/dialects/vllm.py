"""vLLM: rerank with documents always in the answer, and scores of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AliasChoices, BaseModel, Field, model_validator

from rerank_plugins.service.asking import Ask
from rerank_plugins.service.dialects.dialect import Dialect, Endpoint
from rerank_plugins.service.dialects.fields import (
    Documents,
    Extended,
    ModelName,
    Priority,
    Query,
    Result,
    TokenUsage,
    Whole,
    texts_of,
)
from rerank_plugins.service.dialects.infinity import OpenAIError, openai_error
from rerank_plugins.service.problems import Kind

if TYPE_CHECKING:
    from rerank_plugins.service.asking import Answer

UseActivation = Annotated[bool | None, Field(description="false: logits in place of scores")]
TruncationSide = Annotated[
    Literal["left", "right"] | None, Field(description='"left" is refused where a text is cut')
]
Ignored = Annotated[Whole | None, Field(description="ignored: max_length is what is read")]
Some = Annotated[list[str], Field(min_length=1)]
OneOrMore = Annotated[str | Some, Field(description="a text, or a list of texts")]


class VllmRequest(Extended):
    """A rerank request of vLLM."""

    query: Query
    documents: Documents
    model: ModelName = None
    top_n: Annotated[Whole | None, Field(description="how many to keep; all where 0")] = None
    use_activation: UseActivation = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: Ignored = None
    max_tokens_per_query: Ignored = None
    max_tokens_per_doc: Ignored = None
    priority: Priority = None


class VllmScoreRequest(Extended):
    """A score request of vLLM: one query with each document, or as many queries as documents."""

    queries: OneOrMore = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    documents: OneOrMore = Field(
        validation_alias=AliasChoices("text_2", "documents", "items", "data_2")
    )
    model: ModelName = None
    use_activation: UseActivation = None
    truncation_side: TruncationSide = None
    truncate_prompt_tokens: Ignored = None
    priority: Priority = None

    @model_validator(mode="after")
    def _numbers_match(self) -> Self:
        queries, documents = len(listed(self.queries)), len(listed(self.documents))
        if queries not in (1, documents):
            raise ValueError(
                f"expected one query, or one for each of {documents} documents; got {queries}"
            )
        return self


class VllmDocument(BaseModel):
    """A document of an answer."""

    text: str
    multi_modal: None


class VllmResult(Result):
    """One document of an answer of vLLM."""

    document: VllmDocument


class VllmAnswer(BaseModel):
    """A rerank answer of vLLM."""

    id: str
    model: str
    usage: TokenUsage
    results: list[VllmResult]


class VllmScore(BaseModel):
    """The score of one pair."""

    index: int
    object: Literal["score"]
    score: float


class VllmScoreAnswer(BaseModel):
    """A score answer of vLLM, in the order of the pairs."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[VllmScore]
    usage: TokenUsage


VLLM: Final = Dialect("vllm", OpenAIError, openai_error, {Kind.INVALID: 400, Kind.EMPTY: 400})


def listed(texts: str | list[str]) -> list[str]:
    """Return one text or many as a list."""
    return [texts] if isinstance(texts, str) else texts


def _asks(request: VllmRequest) -> list[Ask]:
    top_n = request.top_n or 0
    return [
        Ask(
            query=request.query,
            documents=texts_of(request.documents),
            model=request.model,
            top_n=top_n if top_n > 0 else None,
            raw=_raw(request),
            return_documents=True,
            instruction=request.instruction,
            bulk=(request.priority or 0) > 0,
            uncut="truncation_side" if request.truncation_side == "left" else "",
        )
    ]


def _raw(request: VllmRequest | VllmScoreRequest) -> bool:
    return bool(request.raw_scores) or request.use_activation is False


def _score_asks(request: VllmScoreRequest) -> list[Ask]:
    queries, documents = listed(request.queries), listed(request.documents)
    places: dict[str, list[int]] = {}
    for place in range(len(documents)):
        places.setdefault(queries[0 if len(queries) == 1 else place], []).append(place)
    # The pairs of one query are one ranking.
    return [
        Ask(
            query=query,
            documents=[documents[place] for place in own],
            places=own,
            model=request.model,
            raw=_raw(request),
            instruction=request.instruction,
            bulk=(request.priority or 0) > 0,
            uncut="truncation_side" if request.truncation_side == "left" else "",
            all=True,
        )
        for query, own in places.items()
    ]


def _answer(answer: Answer) -> object:
    ask = answer.ask
    return {
        "id": f"rerank-{answer.id}",
        "model": answer.model,
        "usage": answer.usage,
        "results": [
            {
                "index": each.index,
                "document": {"text": each.text, "multi_modal": None},
                "relevance_score": ask.score(each),
            }
            for each in answer.ranking
        ],
    }


def _score_answer(answer: Answer) -> object:
    scores = {
        ask.place(each): ask.score(each)
        for ask, ranking in zip(answer.asks, answer.rankings, strict=True)
        for each in ranking
    }
    return {
        "id": f"score-{answer.id}",
        "object": "list",
        "created": answer.created,
        "model": answer.model,
        "data": [
            {"index": place, "object": "score", "score": scores[place]} for place in sorted(scores)
        ],
        "usage": answer.usage,
    }


RERANK: Final = Endpoint(
    VLLM,
    "Rank documents, as vLLM does",
    VllmRequest,
    _asks,
    _answer,
    VllmAnswer,
    {
        "query": "what do foxes eat?",
        "documents": ["The sky is blue.", "A red fox eats rodents."],
        "top_n": 1,
    },
)
SCORE: Final = Endpoint(
    VLLM,
    "Score pairs, as vLLM does",
    VllmScoreRequest,
    _score_asks,
    _score_answer,
    VllmScoreAnswer,
    {"text_1": "what do foxes eat?", "text_2": ["The sky is blue.", "A red fox eats rodents."]},
)
