"""Writes golden.json: logits of every tiny model by transformers' own padded forward.

Language models are asked as the card of Qwen3-Reranker asks.

Run it by hand when an architecture is added: ``python -m tests.scorers.torch.make_golden``. Logits
that are there already must not change; if they do, either transformers changed what a checkpoint
means, or the test models are no longer the same.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers

from tests.language_cards import ModelCard
from tests.tiny_language_models import write_language_model
from tests.tiny_torch import ARCHITECTURES, PaddedForward, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LANGUAGE = ("qwen3", "qwen2", "gemma", "llama", "mistral")

PAIRS = (
    ("a", "a"),
    ("the cat", "sat on the mat"),
    ("the cat", "the mat sat on a cat"),
    ("where is the river bank", "a tree on the river bank"),
    ("where is the river bank", "the bank, the query, the dog"),
    ("query", "the dog sat on a tree, the cat on the mat; the river, a bank 42 " * 3),
    ("the river bank on a tree " * 12, "a dog"),
)


def main() -> None:
    """Score PAIRS with every model, and write the logits."""
    golden = {}
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            logits = PaddedForward(write_torch_model(Path(folder), name)).logits(PAIRS)
        golden[name] = np.round(logits.astype(float), 6).tolist()
    language = {}
    for name in LANGUAGE:
        with tempfile.TemporaryDirectory() as folder:
            card = ModelCard(
                write_language_model(Path(folder), name), "qwen3-reranker", max_length=500
            )
            logits = card.logits(PAIRS)
        language[name] = np.round(logits.astype(float), 6).tolist()
    made = (
        "by tests/scorers/torch/make_golden.py with transformers "
        f"{transformers.__version__} and torch {torch.__version__.partition('+')[0]}, float32"
    )
    path = Path(__file__).with_name("golden.json")
    path.write_text(
        f'{{"made": {json.dumps(made)},\n"pairs": {json.dumps(PAIRS)},\n'
        f'"logits": {_rows(golden)},\n"language": {_rows(language)}}}\n',
        encoding="utf-8",
    )


def _rows(found: Mapping[str, Sequence[float]]) -> str:
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
    return f"{{\n{lines}\n}}"


if __name__ == "__main__":
    main()
