"""What a reranker hands out: frozen values, Python floats, best first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


Reason = Literal["duplicate", "max_candidates"]
"""Why a document is in no ranking."""


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
    came from the pair cache, or from the shared one. ``duplicate_of`` is the index of an earlier
    document that this one repeats, and whose logit it has; it is None where no setting asks for
    duplicates to be found. ``truncated`` and ``cached`` of such a copy are those of that document,
    for it was not scored itself. ``window`` is the best window of a document that was scored in
    windows, None where it fitted or was cut; an exact copy has that of its original, a near one,
    whose text is another, None.
    """

    index: int
    score: float
    logit: float
    text: str
    truncated: bool = False
    cached: bool = False
    duplicate_of: int | None = None
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class DroppedDocument:
    """A document that is in no ranking because a setting says so.

    ``index`` is its place in the caller's sequence and ``text`` the caller's own text. ``reason``
    names what dropped it: "duplicate" or "max_candidates". ``duplicate_of`` is the index of the
    earlier document that it repeats, None where it repeats none.
    """

    index: int
    text: str
    reason: Reason
    duplicate_of: int | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scored documents, best first; equal scores keep the order in which they were given.

    ``scorer`` names who answered: one scorer answers a whole ranking. ``activation`` says what
    turned logits into scores ("sigmoid" or "logit"). ``language`` is the ISO 639-1 code that was
    detected for the query, or None where none was. ``dropped`` are the documents that the settings
    ``duplicates`` and ``max_candidates`` left out, in input order: each document given is there or
    was ranked, before ``top_n`` and ``score_threshold``. They do not count in `len`. ``tokens`` is
    the length of all pairs that were scored for it, as the scorer read them, cached ones included.
    """

    query: str
    documents: tuple[RankedDocument, ...]
    scorer: str
    activation: str
    language: str | None = None
    dropped: tuple[DroppedDocument, ...] = ()
    tokens: int = 0

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
    waited for a pair that another request, or the same one, was scoring already. Each of
    ``cache_misses`` ends as scored, ``pairs_failed`` or, where nobody waits any more,
    ``pairs_dropped``. ``tokens_scored`` counts what was computed: a prefix that pairs share once a
    batch, where the scorer shares it, though it may keep that for the next batch.
    ``tokens_padded`` counts the padding that was computed beside, ``tokens_waiting`` what the queue
    holds, where such a prefix counts once.
    ``out_of_memory`` counts the batches that did not fit,
    ``workers_replaced`` the workers that died and were replaced. ``replicas`` is how many work now,
    ``batch_tokens`` the smallest token budget among them; both are 0 before the model is opened.
    ``shared_hits`` counts the pairs that the shared cache answered, which are neither hits nor
    misses of the pair cache. ``shared_errors`` counts the times that it failed or was late, and
    values in it that are none; ``shared_skipped`` the pairs that were not looked up, or not
    written, because it was down or too slow. ``fallbacks`` counts requests that it was to answer,
    and for which the next of the fallback chain was asked.
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
    out_of_memory: int
    workers_replaced: int
    replicas: int
    batch_tokens: int
    cache_entries: int
    cache_hits: int
    cache_misses: int
    cache_evictions: int
    shared_hits: int
    shared_errors: int
    shared_skipped: int
    fallbacks: int
