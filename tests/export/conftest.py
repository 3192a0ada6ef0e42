"""Small PyTorch rerankers, with real tokenizers, to export."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.config import RerankConfig
from rerank_plugins.export.texts import CheckTexts, QueryGroup
from tests.tiny_models import WORDS, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
AFTER_PADDING = {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "max_position_embeddings": 66,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "xlm-roberta": SIZES | AFTER_PADDING | {"type_vocab_size": 1},
    "roberta": SIZES | AFTER_PADDING | {"type_vocab_size": 1},
    "camembert": SIZES | AFTER_PADDING | {"type_vocab_size": 1},
    "modernbert": SIZES
    | {"local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0}
    | {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    "electra": SIZES | {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "albert": SIZES | {"embedding_size": 16},
    "deberta-v2": SIZES
    | {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
    | {"type_vocab_size": 0, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "mpnet": SIZES | AFTER_PADDING,
}
"""The architectures of rerankers in use, a few thousand weights each."""

UNIGRAM = {"xlm-roberta", "roberta", "camembert", "mpnet"}

LENGTHS = (0, 1, 2, 5, 13, 40, 90)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: small products gain nothing from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_checkpoint(folder: Path, kind: str, *, labels: int = 1) -> Path:
    """Write a model of random weights, large enough that its logits spread."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer("xlm-roberta" if kind in UNIGRAM else "bert")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"max_position_embeddings": 64} | ARCHITECTURES[kind]
    config = AutoConfig.for_model(kind, vocab_size=tokenizer.get_vocab_size(), **settings)
    config.num_labels = labels
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.35)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, one_thread: None) -> Callable[..., RerankConfig]:
    """Write a checkpoint and return the settings that name it."""

    def write(kind: str = "bert", **changes: Any) -> RerankConfig:
        return RerankConfig(model=str(write_checkpoint(tmp_path / kind, kind, **changes)))

    return write


def tiny_texts() -> CheckTexts:
    """Queries with documents from no word to beyond the longest pair."""
    groups = [
        QueryGroup(
            f"{WORDS[i]} {WORDS[-i]}",
            tuple(" ".join(WORDS[(i * n + j) % len(WORDS)] for j in range(n)) for n in LENGTHS),
        )
        for i in range(1, 9)
    ]
    return CheckTexts(tuple(groups[::2]), tuple(groups[1::2]), "words of the tests")
