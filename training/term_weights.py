"""Remake the packaged term weights from a folder of training sets.

    python training/term_weights.py TRAIN_FOLDER OUTPUT_FILE

The same folder gives the same bytes.
"""

import argparse
import gzip
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rerank_plugins.evaluation.sets import read_set
from rerank_plugins.models.term_weights import STEPS_PER_UNIT, UNSEEN_WEIGHT, is_paired
from rerank_plugins.text.terms import split_terms

SETS_BY_LANGUAGE: Final[Mapping[str, tuple[str, ...]]] = {
    "en": (
        "clapnq_dev",
        "cosqa_dev",
        "medquad",
        "nq_open_oracle",
        "pubmedqa",
        "squad2_cs224n_dev",
        "squadshifts_newwiki",
        "tydiqa_en_train",
    ),
    "zh": ("cmrc2018_train", "cmrc2018_trial"),
    "zh-TW": ("drcd_dev",),
    "ja": ("jaquad_train",),
    "ko": ("tydiqa_ko_train",),
    "sw": ("tydiqa_sw_train",),
}

MIN_WEIGHT: Final = 1 / STEPS_PER_UNIT
MIN_DOCUMENTS: Final = 2
"""A term of a single document is left out: it weighs what an unseen term weighs."""

MIN_QUERIES: Final = 5
SETS_WITHOUT_FREE_QUERIES: Final = frozenset({"medquad", "cosqa_dev"})
"""Their queries follow a template or all name one language: what repeats there is no filler."""


@dataclass(frozen=True, slots=True)
class TextCounts:
    """How many texts of one kind and language hold each term, and each character of a pair."""

    texts: int
    holding: Mapping[str, int]
    min_holding: int
    """A term that fewer texts hold is left out."""


def count_texts(texts: Iterable[str], min_holding: int) -> TextCounts:
    """Count, for every term, the texts that hold it."""
    total = 0
    holding: Counter[str] = Counter()
    for text in texts:
        total += 1
        terms = set(split_terms(unicodedata.normalize("NFKC", text)))
        characters = {character for term in terms if is_paired(term) for character in term}
        holding.update(terms | characters)
    return TextCounts(total, holding, min_holding)


def learn_weights(kinds: Sequence[TextCounts]) -> dict[str, float]:
    """Weigh each term by the kind of text that uses it most: ``-ln`` of its share there.

    Queries are a kind beside documents: a question word is rare in documents and says nothing.
    """
    shares: dict[str, float] = {}
    for counts in kinds:
        for term, holding in counts.holding.items():
            if holding >= counts.min_holding:
                shares[term] = max(shares.get(term, 0.0), holding / counts.texts)
    return {
        term: min(UNSEEN_WEIGHT, max(MIN_WEIGHT, -math.log(share)))
        for term, share in shares.items()
    }


def pack_weights(weights: Mapping[str, float]) -> bytes:
    """Write the data file that ``read_weights`` reads, weights rounded to whole steps."""
    terms_by_steps: defaultdict[int, list[str]] = defaultdict(list)
    for term, weight in weights.items():
        terms_by_steps[round(weight * STEPS_PER_UNIT)].append(term)
    lines = [
        f"{steps}\t{' '.join(sorted(terms))}\n" for steps, terms in sorted(terms_by_steps.items())
    ]
    return gzip.compress("".join(lines).encode("utf-8"), compresslevel=9, mtime=0)


def main() -> None:
    """Read the sets, learn the weights, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train_folder", type=Path)
    parser.add_argument("output_file", type=Path)
    arguments = parser.parse_args()
    kinds: list[TextCounts] = []
    for names in SETS_BY_LANGUAGE.values():
        sets = [read_set(arguments.train_folder / name) for name in names]
        documents = (document.full_text for each in sets for document in each.documents.values())
        kinds.append(count_texts(documents, MIN_DOCUMENTS))
        asked = [each for each in sets if each.name not in SETS_WITHOUT_FREE_QUERIES]
        queries = (query.text for each in asked for query in each.queries)
        kinds.append(count_texts(queries, MIN_QUERIES))
    arguments.output_file.write_bytes(pack_weights(learn_weights(kinds)))


if __name__ == "__main__":
    main()
