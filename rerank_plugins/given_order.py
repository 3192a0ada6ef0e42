"""The end of a fallback chain: documents in the order in which they were given. Never fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_plugins.candidates import ALL, Chosen, choose
from rerank_plugins.jobs import CachedPair
from rerank_plugins.options import RETRIEVAL_ORDER
from rerank_plugins.screening import NOT_SCORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.requests import Call


def answer_in_given_order(call: Call) -> None:
    """Give document *i* of a call the logit ``-i``: 0.0, -1.0, -2.0 …, which is also its score.

    Blank documents come last, as in every ranking. Duplicates are found among the texts as they
    were given, for no plugged-in function is called; the first ``max_candidates`` are kept.
    """
    call.prepare()
    for group in call.groups:
        group.scorer, group.activation, group.language = RETRIEVAL_ORDER, "logit", None
        texts = {
            place: text
            for place, text in zip(group.places, group.documents, strict=True)
            if text.strip()
        }
        if call.choice != ALL:
            chosen = choose(texts, call.choice, _in_order)
            # A copy that stays has its own place, not that of its original.
            left_out = {c: o for c, o in chosen.copies.items() if c in chosen.dropped}
            group.chosen = Chosen(left_out, chosen.dropped, chosen.near)
        for place in group.places:
            # 0.0 first: the negative of 0 would be -0.0.
            logit = CachedPair(0.0 - place, truncated=False)
            call.job.deliver(place, logit if place in texts else NOT_SCORED)
    call.job.settle()


def _in_order(texts: Sequence[str]) -> list[float]:
    return [0.0 - place for place in range(len(texts))]
