"""Fit the embedded model's head: two weights and a bias.

    python training/embedded_head.py TRAIN_FOLDER CONFIG_FILE

Examples are the first 20 documents of BM25 for sampled training queries. Every set has the same
total weight, and so have relevant and irrelevant documents: sigmoid(logit) is the probability that
a document is relevant where both kinds are equally likely. Held-out figures come first, each set
scored with a head fitted on the others; the head that is written is fitted on all of them.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from rerank_plugins import RerankConfig
from rerank_plugins.evaluation.first_stage import first_stage
from rerank_plugins.evaluation.sets import RetrievalSet, read_set
from rerank_plugins.scorers.embedded import EmbeddedScorer
from rerank_plugins.text.normalization import normalize_text

SETS = (
    "clapnq_dev",
    "nq_open_oracle",
    "tydiqa_en_train",
    "squad2_cs224n_dev",
    "squadshifts_newwiki",
    "pubmedqa",
    "medquad",
    "cosqa_dev",
)
QUERIES = 60
DEPTH = 20
SEED = 0


@dataclass(frozen=True, slots=True)
class Examples:
    """Pairs of one set: similarities (pairs, 2), whether each is relevant, and its weight."""

    similarities: NDArray[np.float32]
    relevant: NDArray[np.bool_]
    weights: NDArray[np.float64]


def gather(scorer: EmbeddedScorer, dataset: RetrievalSet) -> Examples:
    """Score the first stage of sampled queries."""
    judged = dataset.judged_queries
    queries = random.Random(SEED).sample(judged, min(QUERIES, len(judged)))
    found = first_stage(dataset, queries, depth=DEPTH)
    similarities, relevant = [], []
    for query in queries:
        docids = found[query.qid]
        texts = [normalize_text(dataset.documents[docid].full_text) for docid in docids]
        similarities.append(scorer.similarities(scorer.encode(normalize_text(query.text), texts)))
        grades = dataset.grades[query.qid]
        relevant.append(np.array([grades.get(docid, 0) > 0 for docid in docids], dtype=bool))
    labels = np.concatenate(relevant)
    weights = np.where(labels, 1 / labels.sum(), 1 / (~labels).sum())
    return Examples(np.concatenate(similarities), labels, weights)


def fit(sets: list[Examples]) -> tuple[NDArray[np.float64], float]:
    """Fit a logistic regression; returns the two weights and the bias."""
    weights = np.concatenate([each.weights for each in sets])
    model = LogisticRegression(C=1e6, max_iter=1000)
    model.fit(
        np.concatenate([each.similarities for each in sets]),
        np.concatenate([each.relevant for each in sets]),
        sample_weight=weights / weights.mean(),
    )
    return model.coef_[0], float(model.intercept_[0])


def report(name: str, held_out: Examples, weights: NDArray[np.float64], bias: float) -> None:
    """Print the calibration of one set under a head that has not seen it."""
    chance = 1 / (1 + np.exp(-(held_out.similarities @ weights + bias)))
    sure = chance >= 0.5
    precision = held_out.relevant[sure].mean() if sure.any() else float("nan")
    recall, fallout = sure[held_out.relevant].mean(), sure[~held_out.relevant].mean()
    print(
        f"{name:22} relevant {held_out.relevant.mean():.3f}  at 0.5: recall {recall:.2f},"
        f" irrelevant let through {fallout:.2f}, precision {precision:.2f}",
        flush=True,
    )


def main() -> None:
    """Gather, report what was held out, fit on everything, write the head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train_folder", type=Path)
    parser.add_argument("config_file", type=Path)
    arguments = parser.parse_args()
    scorer = EmbeddedScorer.open(RerankConfig())
    sets = {name: gather(scorer, read_set(arguments.train_folder / name)) for name in SETS}
    for name, held_out in sets.items():
        report(name, held_out, *fit([each for other, each in sets.items() if other != name]))
    weights, bias = fit(list(sets.values()))
    settings = json.loads(arguments.config_file.read_text(encoding="utf-8"))
    settings["window_weight"] = round(float(weights[0]), 2)
    settings["token_weight"] = round(float(weights[1]), 2)
    settings["bias"] = round(bias, 2)
    arguments.config_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
