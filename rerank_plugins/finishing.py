"""From the logits of a call to what it returns: activation, threshold, order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_plugins.ranking import activate, select
from rerank_plugins.results import DroppedDocument, RankedDocument, Ranking

if TYPE_CHECKING:
    from rerank_plugins.requests import Call, Keep


def ranking_of(call: Call, keep: Keep) -> Ranking:
    """Return the ranking of a call of one query whose job succeeded.

    Where it fell back, no ``score_threshold`` applies: it was chosen for another model's scores.
    """
    (group,) = call.groups
    copies, near, dropped = group.chosen.copies, group.chosen.near, group.chosen.dropped
    places = [place for place in group.places if place not in dropped]
    # A copy was not scored: what is known of its original is true of it.
    scored = [copies.get(place, place) for place in places]
    pairs = call.job.delivered()
    logits = [pairs[place].logit for place in scored]
    scores = activate(logits, group.activation)
    if call.falls_back:
        keep = keep._replace(score_threshold=None)
    kept = select(logits, scores, **keep._asdict())
    return Ranking(
        query=group.query,
        documents=tuple(
            RankedDocument(
                index=places[i],
                score=float(scores[i]),
                logit=logits[i],
                text=group.documents[places[i]],
                truncated=pairs[scored[i]].truncated,
                cached=call.job.cached[scored[i]],
                duplicate_of=copies.get(places[i]),
                # A window is of one text, and a near duplicate has another.
                window=None if places[i] in near else pairs[scored[i]].window,
            )
            for i in kept
        ),
        scorer=group.scorer,
        activation=group.activation,
        language=group.language,
        dropped=tuple(
            DroppedDocument(place, group.documents[place], dropped[place], copies.get(place))
            for place in sorted(dropped)
        ),
        tokens=sum(pairs[place].tokens for place in set(scored)),
    )


def scores_of(call: Call) -> list[float]:
    """Return the score of each pair of a call whose job succeeded, in input order."""
    pairs = call.job.delivered()
    scores = [0.0] * len(pairs)
    for group in call.groups:
        activated = activate([pairs[place].logit for place in group.places], group.activation)
        for place, score in zip(group.places, activated, strict=True):
            scores[place] = float(score)
    return scores
