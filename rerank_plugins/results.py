"""What a reranker hands out: frozen values, Python floats, best first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a long document that answered best: window ``index`` of ``count``, from 0.

    It holds the characters ``[start, end)`` of the text as it was scored, which is the caller's own
    where no normalizer and no hook changed it.
    """

    index: int
    count: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document of a ranking.

    ``index`` is its place in the caller's sequence and ``text`` the caller's own text, untouched.
    ``logit`` is the scorer's raw output for the pair, ``score`` the logit after the activation;
    higher is better. A blank document is never scored: its logit is the lowest float32.
    ``truncated`` says that the scorer did not read the whole document, ``cached`` that the logit
    came from the pair cache. ``window`` is the best window of a document that was scored in
    windows, None where it fitted or was cut.
    """

    index: int
    score: float
    logit: float
    text: str
    truncated: bool = False
    cached: bool = False
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scored documents, best first; equal scores keep the order in which they were given.

    ``scorer`` names who answered: one scorer answers a whole ranking. ``activation`` says what
    turned logits into scores ("sigmoid" or "logit"). ``language`` is the ISO 639-1 code that was
    detected for the query, or None where none was.
    """

    query: str
    documents: tuple[RankedDocument, ...]
    scorer: str
    activation: str
    language: str | None = None

    def __iter__(self) -> Iterator[RankedDocument]:
        return iter(self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, key: int) -> RankedDocument: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[RankedDocument]: ...

    def __getitem__(self, key: int | slice) -> RankedDocument | Sequence[RankedDocument]:
        return self.documents[key]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters of one engine since it was opened; the unit is in each name.

    ``pairs_scored`` went through the model, a document in windows counted once; ``pairs_joined``
    waited for a pair that another request, or the same one, was scoring already. ``tokens_scored``
    counts what was computed: a prefix that pairs share once a batch, where the scorer shares it.
    ``tokens_padded`` counts the padding that was computed beside.
    """

    scorer: str
    requests: int
    pairs_scored: int
    pairs_joined: int
    pairs_failed: int
    pairs_dropped: int
    batches: int
    tokens_scored: int
    tokens_padded: int
    tokens_waiting: int
    cache_entries: int
    cache_hits: int
    cache_misses: int
    cache_evictions: int
