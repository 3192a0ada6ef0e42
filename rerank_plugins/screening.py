"""Which texts of a call its engine sees: cleaned ones, without blanks and what is left out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rerank_plugins.candidates import choose
from rerank_plugins.jobs import CachedPair, check_deadline
from rerank_plugins.ranking import BLANK_LOGIT
from rerank_plugins.submission import CHUNK_PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rerank_plugins.cleaning import Cleaner
    from rerank_plugins.jobs import Job
    from rerank_plugins.requests import Call, Group

NOT_SCORED = CachedPair(BLANK_LOGIT, truncated=False)
"""What stands in the place of a document that no scorer sees."""


def cleaned_texts(
    cleaner: Cleaner, group: Group, job: Job, deadline: float | None
) -> Iterator[tuple[int, str]]:
    """Give the places and cleaned texts of what there is to score."""
    for place, document in zip(group.places, group.documents, strict=True):
        check_deadline(deadline)
        text = cleaner.document(document, job.where(place))
        if text.strip():
            yield place, text
        else:
            job.deliver(place, NOT_SCORED)
            job.settle()


def chosen_texts(
    call: Call, query: str, texts: Iterator[tuple[int, str]], deadline: float | None
) -> Iterator[tuple[int, str]]:
    """Give those of *texts*, by place, that are scored; what becomes of the others is noted.

    All of them are read first. *query* is the cleaned query of a call that has but one.
    """
    (group,) = call.groups
    found = dict(texts)
    group.chosen = choose(
        found,
        call.choice,
        partial(_lexical_logits, query, deadline),
        partial(check_deadline, deadline),
    )
    left_out = group.chosen.copies.keys() | group.chosen.dropped.keys()
    for place in left_out:
        call.job.deliver(place, NOT_SCORED)
    call.job.settle()
    for place, text in found.items():
        if place not in left_out:
            yield place, text


def _lexical_logits(query: str, deadline: float | None, texts: Sequence[str]) -> list[float]:
    from rerank_plugins.scorers.lexical import LexicalScorer

    scorer = LexicalScorer.open()
    logits: list[float] = []
    for start in range(0, len(texts), CHUNK_PAIRS):
        check_deadline(deadline)
        chunk = texts[start : start + CHUNK_PAIRS]
        logits += scorer.forward(scorer.encode(query, chunk))
    return logits
