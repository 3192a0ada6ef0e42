"""What every dialect comes to: rankings that are asked for, and what they are answered with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.results import RankedDocument, Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One ranking that a request asks for.

    ``raw`` asks for logits in place of scores. ``given`` are the documents as they came, to be
    handed back where ``return_documents`` says so; None where they came as their texts.
    ``places`` are those of the documents in the request, None where it holds no others.
    ``uncut`` names the field that forbids a document to be cut, "" where it may be. With ``all``
    every document is ranked, whatever the settings leave out.
    """

    query: str
    documents: Sequence[str]
    model: str | None = None
    top_n: int | None = None
    raw: bool = False
    return_documents: bool = False
    given: Sequence[object] | None = None
    places: Sequence[int] | None = None
    instruction: str | None = None
    bulk: bool = False
    uncut: str = ""
    all: bool = False

    def score(self, document: RankedDocument) -> float:
        """Return the number that was asked for."""
        return document.logit if self.raw else document.score

    def place(self, document: RankedDocument) -> int:
        """Return where in the request a document stood."""
        return document.index if self.places is None else self.places[document.index]

    def original(self, document: RankedDocument) -> object:
        """Return a document as it came."""
        return document.text if self.given is None else self.given[document.index]


@dataclass(frozen=True, slots=True)
class Answer:
    """The rankings of a request, and what else an answer names.

    ``id`` is that of the request, ``created`` the `time.time` of the answer in whole seconds,
    ``model`` the name that the model is served by.
    """

    asks: Sequence[Ask]
    rankings: Sequence[Ranking]
    id: str
    created: int
    model: str

    @property
    def ask(self) -> Ask:
        """The first ranking asked for: of most requests the only one."""
        return self.asks[0]

    @property
    def ranking(self) -> Ranking:
        """The answer to the first one."""
        return self.rankings[0]

    @property
    def tokens(self) -> int:
        """Tokens of all pairs."""
        return sum(ranking.tokens for ranking in self.rankings)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens by the names that OpenAI's clients know."""
        return {"prompt_tokens": self.tokens, "total_tokens": self.tokens}
