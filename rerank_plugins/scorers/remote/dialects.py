"""How servers are spoken to: a row for each dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from rerank_plugins.options import Dialect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UNTOLD: Final = 1000
"""Documents in a request where nothing is known of the server's limit: what Cohere advises."""


class Question(NamedTuple):
    """What is asked of a server: *documents* to be scored for one *query*, all of them."""

    model: str | None
    query: str
    documents: Sequence[str]
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One dialect.

    ``path`` is where pairs are scored, ``write`` the JSON body of a question. The answer is a list,
    below the key ``results`` where that is not None, of objects with ``index`` and the key
    ``value``. ``lists`` is the path that tells the server's models, None where none is asked.
    ``documents`` is how many a request may have, ``characters`` how long a text may be; None is no
    bound.
    """

    dialect: Dialect
    path: str
    write: Callable[[Question], dict[str, object]]
    results: str | None
    value: str
    lists: str | None
    documents: int
    characters: int | None = None
    cut: str = "the server's own"


def _tei(asked: Question) -> dict[str, object]:
    return {
        "query": asked.query,
        "texts": asked.documents,
        "raw_scores": True,
        "truncate": True,
        "return_text": False,
    }


def _infinity(asked: Question) -> dict[str, object]:
    body: dict[str, object] = {
        "model": asked.model,
        "query": asked.query,
        "documents": asked.documents,
        "raw_scores": True,
        "return_documents": False,
    }
    # This project's own service understands it; nobody else is sent it.
    return body if asked.instruction is None else body | {"instruction": asked.instruction}


def _vllm(asked: Question) -> dict[str, object]:
    return {
        "model": asked.model,
        "query": asked.query,
        "documents": asked.documents,
        "top_n": 0,
        # Two names of one option: older versions know the second.
        "use_activation": False,
        "activation": False,
        # Its longest; without, a pair that is longer is refused.
        "truncate_prompt_tokens": -1,
    }


def _jina(asked: Question) -> dict[str, object]:
    return _cohere(asked) | {"return_documents": False}


def _cohere(asked: Question) -> dict[str, object]:
    documents = asked.documents
    return {
        "model": asked.model,
        "query": asked.query,
        "documents": documents,
        "top_n": len(documents),
    }


def _nim(asked: Question) -> dict[str, object]:
    return {
        "model": asked.model,
        "query": {"text": asked.query},
        "passages": [{"text": document} for document in asked.documents],
        "truncate": "END",
    }


ROWS: Final = {
    row.dialect: row
    for row in (
        Row(Dialect.TEI, "/rerank", _tei, None, "score", "/info", 32, cut="longest first"),
        Row(
            Dialect.INFINITY,
            "/rerank",
            _infinity,
            "results",
            "relevance_score",
            "/models",
            2048,
            characters=122_880,
        ),
        Row(
            Dialect.VLLM,
            "/v1/rerank",
            _vllm,
            "results",
            "relevance_score",
            "/v1/models",
            UNTOLD,
            cut="max_model_len",
        ),
        Row(Dialect.JINA, "/v1/rerank", _jina, "results", "relevance_score", None, UNTOLD),
        Row(Dialect.COHERE, "/v2/rerank", _cohere, "results", "relevance_score", None, 1000),
        Row(Dialect.NIM, "/v1/ranking", _nim, "rankings", "logit", "/v1/models", 512, cut="END"),
    )
}
"""The dialects that can be asked for. Limits are those of the servers' own documents."""
