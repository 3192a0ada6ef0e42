"""Writes language_cards.json: what the makers' own libraries feed their models, and the logits.

Run it by hand, in an environment of mxbai-rerank 0.1.6, FlagEmbedding 1.4.2 and transformers 4.57,
from the root of the project: ``python -m tests.scorers.torch.make_language_cards``. transformers 5
lost ``prepare_for_model``, which cuts and joins the pairs of both.
"""

from __future__ import annotations

import json
import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import transformers
from FlagEmbedding.inference.reranker.decoder_only.base import BaseLLMReranker
from mxbai_rerank import MxbaiRerankV2

from tests.tiny_language_models import SPECIAL_TEXTS, make_language_pairs, write_language_model

INSTRUCTION = "find the cat on the mat"
SETTINGS = ((None, 40), (None, 120), (None, 450), (INSTRUCTION, 120))


def main() -> None:
    """Run both libraries over tiny models, instructions and lengths, and write what they did."""
    pairs = [*make_language_pairs(60, longest=150), *(("the cat", text) for text in SPECIAL_TEXTS)]
    pairs.append((" ".join(["the cat sat on the mat"] * 30), "the dog"))
    runs = [
        *(mxbai("qwen2", *setting, pairs) for setting in SETTINGS),
        *(gemma("gemma", *setting, pairs) for setting in SETTINGS),
    ]
    made = (
        "by tests/scorers/torch/make_language_cards.py with mxbai-rerank 0.1.6, FlagEmbedding "
        f"1.4.2 and transformers {transformers.__version__}"
    )
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in runs)
    text = f'{{"made": {json.dumps(made)},\n"pairs": {json.dumps(pairs)},\n'
    path = Path(__file__).with_name("language_cards.json")
    path.write_text(f'{text}"runs": [\n{lines}\n]}}\n', encoding="utf-8")


def mxbai(
    name: str, instruction: str | None, max_length: int, pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """Score *pairs* as mxbai-rerank does, and return ids and logits."""
    with tempfile.TemporaryDirectory() as folder:
        write_language_model(Path(folder), name)
        model = MxbaiRerankV2(
            folder, device="cpu", torch_dtype=torch.float32, max_length=max_length
        )
        inputs = [model.prepare_inputs([q], [d], instruction=instruction) for q, d in pairs]
        ids = [row["input_ids"][row["attention_mask"] > 0].tolist() for row in inputs]
        queries, documents = map(list, zip(*pairs, strict=True))
        logits = model.predict(queries, documents, instruction=instruction).tolist()
    return _run("mxbai-rerank-v2", name, instruction, max_length, ids, logits)


def gemma(
    name: str, instruction: str | None, max_length: int, pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """Score *pairs* as FlagEmbedding does, and return ids and logits."""
    with tempfile.TemporaryDirectory() as folder:
        write_language_model(Path(folder), name)
        model = BaseLLMReranker(folder, devices="cpu", max_length=max_length, prompt=instruction)
        seen: list[dict[str, Any]] = []
        model.model.register_forward_pre_hook(
            lambda _model, _args, inputs: seen.append(inputs), with_kwargs=True
        )
        ids, logits = [], []
        for pair in pairs:
            logits += model.compute_score_single_gpu(model.get_detailed_inputs([pair]))
            row = seen[-1]
            ids.append(row["input_ids"][row["attention_mask"] > 0].tolist())
    return _run("FlagEmbedding", name, instruction, max_length, ids, logits)


def _run(
    family: str,
    name: str,
    instruction: str | None,
    max_length: int,
    ids: list[list[int]],
    logits: list[float],
) -> dict[str, Any]:
    begin = _common(ids)
    end = _common([row[::-1] for row in ids])[::-1]
    return {
        "family": family,
        "model": name,
        "instruction": instruction,
        "max_length": max_length,
        "begin": begin,
        "end": end,
        "between": [row[len(begin) : len(row) - len(end)] for row in ids],
        "logits": [round(logit, 6) for logit in logits],
    }


def _common(rows: list[list[int]]) -> list[int]:
    """Return the ids with which all *rows* begin."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return [column[0] for column in columns]


if __name__ == "__main__":
    main()
