"""Writes flag_embedding.json: what the real FlagEmbedding feeds its model, and the scores it gives.

Run it by hand, in an environment of FlagEmbedding 1.4.2 with transformers 4.57, from the root of
the project: ``python -m tests.scorers.torch.make_flag_embedding``. With transformers 5 this library
decodes its ids to text and tokenizes that again, which is no reference for ids.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import transformers
from FlagEmbedding import FlagReranker

from tests.tiny_models import WORDS
from tests.tiny_torch import write_torch_model

TOKENIZERS = {
    "bert": "BertTokenizerFast",
    "xlm-roberta": "XLMRobertaTokenizerFast",
    "roberta": "RobertaTokenizerFast",
}
LENGTHS = ((1, 1), (1, 90), (3, 8), (12, 5), (30, 2), (40, 40), (90, 1), (90, 90), (2, 15))
ODD_TEXTS = (
    ("the cat's query?", "  a dog,  on the mat! 的猫"),
    ("Where is the river bank", "éclair \U0001f600 tree\nriver\tbank " * 8),
)


def main() -> None:
    """Run FlagEmbedding over every tokenizer, side and length, and write what it did."""
    random = Random(5)
    texts = [tuple(" ".join(random.choices(WORDS, k=n)) for n in pair) for pair in LENGTHS]
    pairs = [*texts, *ODD_TEXTS]
    runs = [
        run(name, side, max_length, pairs)
        for name in TOKENIZERS
        for side in ("right", "left")
        for max_length in (24, 64)
    ]
    made = (
        "by tests/scorers/torch/make_flag_embedding.py with FlagEmbedding 1.4.2 and "
        f"transformers {transformers.__version__}"
    )
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in runs)
    text = f'{{"made": {json.dumps(made)},\n"pairs": {json.dumps(pairs, ensure_ascii=False)},\n'
    path = Path(__file__).with_name("flag_embedding.json")
    path.write_text(f'{text}"runs": [\n{lines}\n]}}\n', encoding="utf-8")


def run(name: str, side: str, max_length: int, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Score *pairs* one by one, and return the ids and segments that reached the model."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = {"tokenizer_class": TOKENIZERS[name], "truncation_side": side}
        write_torch_model(Path(folder), name, tokenizer_config=tokenizer)
        reranker = FlagReranker(folder, devices="cpu", max_length=max_length)
        seen: list[dict[str, Any]] = []
        reranker.model.register_forward_pre_hook(
            lambda _model, _args, inputs: seen.append(inputs), with_kwargs=True
        )
        ids, segments, scores = [], [], []
        for pair in pairs:
            scores += reranker.compute_score_single_gpu([pair])
            ids.append(seen[-1]["input_ids"][0].tolist())
            segments.append(
                seen[-1]["token_type_ids"][0].tolist() if "token_type_ids" in seen[-1] else None
            )
    return {
        "model": name,
        "truncation_side": side,
        "max_length": max_length,
        "ids": ids,
        "segments": segments,
        "logits": scores,
    }


if __name__ == "__main__":
    main()
