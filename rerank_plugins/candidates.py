"""Which documents of a request are scored: duplicates found, the most promising chosen. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from rerank_plugins.options import Duplicates
from rerank_plugins.text.terms import split_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rerank_plugins.results import Reason

SHINGLE_WORDS: Final = 5
"""Words of a shingle: long enough that two texts seldom share one by chance."""


class Choice(NamedTuple):
    """What a request says of its documents; None is no bound and no search for near duplicates."""

    duplicates: Duplicates = Duplicates.KEEP
    near_duplicates: float | None = None
    max_candidates: int | None = None


ALL: Final = Choice()
"""Every document is scored and ranked; none is looked at beforehand."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What becomes of documents that are not scored, by place.

    ``copies`` maps a duplicate to the document before it that it repeats, which is no duplicate
    itself; those of another text than their original are ``near``. ``dropped`` says which documents
    are in no ranking. A copy that was not dropped takes the logit of its original.
    """

    copies: Mapping[int, int] = field(default_factory=dict)
    dropped: Mapping[int, Reason] = field(default_factory=dict)
    near: frozenset[int] = frozenset()


def _nothing() -> None:
    """Do nothing for a text."""


def choose(
    texts: Mapping[int, str],
    choice: Choice,
    first_stage: Callable[[Sequence[str]], Sequence[float]],
    on_text: Callable[[], object] = _nothing,
) -> Chosen:
    """Decide which of *texts*, by place and in input order, are scored.

    *first_stage* gives texts their logits, (n,) for n of them; it is asked only where more than
    ``max_candidates`` texts are left without the duplicates. Of equal logits the first come first.
    *on_text* is called for each text that is compared, and may raise to end it all.
    """
    places = list(texts)
    found = find_copies(list(texts.values()), choice.near_duplicates, on_text)
    copies = {places[copy]: places[original] for copy, original in found.items()}
    left = [place for place in places if place not in copies]
    beyond: set[int] = set()
    if choice.max_candidates is not None and len(left) > choice.max_candidates:
        logits = first_stage([texts[place] for place in left])
        best_first = sorted(range(len(left)), key=lambda i: -logits[i])
        beyond = {left[i] for i in best_first[choice.max_candidates :]}
    dropped: dict[int, Reason] = dict.fromkeys(beyond, "max_candidates")
    for copy, original in copies.items():
        if choice.duplicates is Duplicates.DROP:
            dropped[copy] = "duplicate"
        elif original in beyond:
            dropped[copy] = "max_candidates"
    near = frozenset(copy for copy, original in copies.items() if texts[copy] != texts[original])
    return Chosen(copies, dropped, near)


def find_copies(
    texts: Sequence[str], near: float | None = None, on_text: Callable[[], object] = _nothing
) -> dict[int, int]:
    """Map each text that repeats an earlier one to that one, which repeats none itself.

    Equal texts do. Where *near* is given, so do texts whose sets of shingles (runs of five words)
    have a Jaccard similarity of *near* or more: shared shingles over all shingles of the two. Of
    several earlier texts the most similar counts, then the first. A text of fewer than five words
    is one shingle. *on_text* is called twice for each distinct text that is compared.
    """
    first: dict[str, int] = {}
    copies: dict[int, int] = {}
    for place, text in enumerate(texts):
        original = first.setdefault(text, place)
        if original != place:
            copies[place] = original
    if near is None:
        return copies
    distinct = list(first.values())
    sets = []
    for text in first:
        on_text()
        sets.append(_shingles(text))
    similar = _find_similar(sets, near, on_text)
    nearly = {distinct[copy]: distinct[original] for copy, original in similar.items()}
    return nearly | {place: nearly.get(original, original) for place, original in copies.items()}


def _shingles(text: str) -> set[int]:
    """Return the shingles of *text* as hashes: 64 bits, so that two never meet by chance."""
    words = list(map(hash, split_words(text)))
    if len(words) < SHINGLE_WORDS:
        return {hash(text)}
    runs = (words[start:] for start in range(SHINGLE_WORDS))
    return set(map(hash, zip(*runs, strict=False)))


def _find_similar(
    sets: Sequence[set[int]], near: float, on_set: Callable[[], object]
) -> dict[int, int]:
    """Map each set that is similar to an earlier one to the most similar of those that are not.

    Two sets that share enough also share one of the rarest few of each, as many as may be left
    out of it: only those are looked up. Sets that meet first at the i-th rarest shingle share none
    that is rarer, so that what is left bounds their similarity: most need no comparison in full.
    """
    frequency = Counter(chain.from_iterable(sets))
    common = [sum(frequency[shingle] > 1 for shingle in shingles) for shingles in sets]
    similar: dict[int, int] = {}
    holders: defaultdict[int, set[int]] = defaultdict(set)
    for place, shingles in enumerate(sets):
        on_set()
        rarest = _rarest(shingles, frequency, len(shingles) - int(near * len(shingles)) + 1)
        met: set[int] = set()
        alike = []
        for i, shingle in enumerate(rarest):
            new = holders.get(shingle, met) - met
            met |= new
            for earlier in new:
                size = len(shingles) + len(sets[earlier])
                most = min(common[place] - i, common[earlier])
                if _jaccard(most, size) < near:
                    continue
                similarity = _jaccard(len(shingles & sets[earlier]), size)
                if similarity >= near:
                    alike.append((-similarity, earlier))
        if alike:
            similar[place] = min(alike)[1]
            continue
        for shingle in rarest:
            holders[shingle].add(place)
    return similar


def _rarest(shingles: set[int], frequency: Mapping[int, int], count: int) -> list[int]:
    """Return the *count* rarest, in one order for all sets, without those no other set holds."""
    shared = [shingle for shingle in shingles if frequency[shingle] > 1]
    left = count - (len(shingles) - len(shared))
    if left <= 0 or not shared:
        return []
    return sorted(sorted(shared), key=frequency.__getitem__)[:left]


def _jaccard(shared: int, size: int) -> float:
    """Return the similarity of two sets of *size* elements together, which share *shared*."""
    return shared / (size - shared)
