"""Real PyTorch cross-encoders of every architecture, small enough to build in a test.

Their weights come from a bit generator whose stream numpy promises to keep, not from torch, so that
golden scores outlive both.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tests.tiny_models import WORDS, Kind, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MAX_TOKENS = 64
HIDDEN = 32
HEADS = 4

HEAD_WEIGHTS = ("classifier.weight", "classifier.out_proj.weight")

AS_BERT = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
AS_ROBERTA = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
    "bos_token": "<s>",
    "eos_token": "</s>",
}
SPECIAL_TOKENS: Mapping[Kind, Mapping[str, str]] = {
    "bert": AS_BERT,
    "xlm-roberta": AS_ROBERTA,
    "roberta": AS_ROBERTA,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model type of transformers, its tokenizer, and its settings beyond the size.

    ``segments`` says that the model reads token_type_ids, ``packed`` that it runs without padding.
    ``head_gain`` makes logits of several units: enough for a bound of 1e-4 to mean something, and
    few enough for float32 to keep it.
    """

    model_type: str
    tokenizer: Kind
    settings: Mapping[str, Any] = field(default_factory=dict)
    segments: bool = False
    packed: bool = True
    head_gain: float = 4.0


OFFSET_POSITIONS = {"max_position_embeddings": MAX_TOKENS + 2, "pad_token_id": 1}
ROBERTA = {**OFFSET_POSITIONS, "type_vocab_size": 1}
MODERNBERT = {
    "local_attention": 8,
    "global_attn_every_n_layers": 3,
    "num_hidden_layers": 4,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture("bert", "bert", segments=True, head_gain=3),
    "xlm-roberta": Architecture("xlm-roberta", "xlm-roberta", ROBERTA),
    "roberta": Architecture("roberta", "roberta", ROBERTA),
    "camembert": Architecture("camembert", "xlm-roberta", ROBERTA),
    "modernbert cls": Architecture(
        "modernbert", "bert", {**MODERNBERT, "classifier_pooling": "cls"}, head_gain=1
    ),
    "modernbert mean": Architecture(
        "modernbert", "bert", {**MODERNBERT, "classifier_pooling": "mean"}, head_gain=1
    ),
    "electra": Architecture("electra", "bert", {"embedding_size": 16}, segments=True, head_gain=1),
    "distilbert": Architecture("distilbert", "bert", head_gain=0.5),
    "albert": Architecture("albert", "bert", {"embedding_size": 16}, segments=True, head_gain=2),
    "albert groups": Architecture(
        "albert",
        "bert",
        {
            "embedding_size": 16,
            "num_hidden_layers": 4,
            "num_hidden_groups": 2,
            "inner_group_num": 2,
        },
        segments=True,
        head_gain=2,
    ),
    "deberta-v2": Architecture(
        "deberta-v2", "bert", {**DEBERTA, "type_vocab_size": 0}, packed=False, head_gain=1
    ),
    "deberta-v2 segments": Architecture(
        "deberta-v2",
        "bert",
        {**DEBERTA, "type_vocab_size": 2},
        segments=True,
        packed=False,
        head_gain=1,
    ),
    "mpnet": Architecture("mpnet", "roberta", OFFSET_POSITIONS, packed=False),
}

SIZES: Mapping[str, Mapping[str, int]] = {
    "distilbert": {"dim": HIDDEN, "hidden_dim": 64, "n_layers": 3, "n_heads": HEADS},
}
USUAL_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
}


def write_torch_model(
    folder: Path,
    name: str = "bert",
    *,
    labels: int = 1,
    tokenizer_config: Mapping[str, object] | None = None,
    **config: object,
) -> Path:
    """Write the architecture *name* as transformers saves it, and return *folder*."""
    architecture = ARCHITECTURES[name]
    tokenizer = make_tokenizer(architecture.tokenizer)
    special = SPECIAL_TOKENS[architecture.tokenizer]
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": MAX_TOKENS,
        "pad_token_id": tokenizer.token_to_id(special["pad_token"]),
        "num_labels": labels,
    }
    settings |= SIZES.get(architecture.model_type, USUAL_SIZES)
    settings |= {**architecture.settings, **config}
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(architecture.model_type, **settings)
    )
    fill(model, architecture.head_gain)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "attention_mask", *["token_type_ids"] * architecture.segments]
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "model_input_names": inputs,
        **special,
        **(tokenizer_config or {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return folder


def fill(model: torch.nn.Module, head_gain: float) -> None:
    """Give *model* weights that its logits hang on: tokens, their order, segments, attention."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = np.sqrt(3) * uniform(name, weight.numel())  # of variance 1
            if weight.ndim == 1:
                centre = 1.0 if name.endswith("weight") else 0.0  # a norm's scale, or a bias
                values = centre + 0.1 * noise
            elif "embeddings." in name:
                values = noise
            else:
                gain = head_gain if name in HEAD_WEIGHTS else 2.0
                values = gain * noise / np.sqrt(weight.shape[-1])
            weight.copy_(torch.from_numpy(values).reshape(weight.shape))


def uniform(name: str, count: int) -> np.ndarray:
    """Return *count* numbers of [-1, 1), the same for a name for ever.

    numpy promises the stream of a bit generator, not what a `Generator` makes of it.
    """
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
    return (raw >> 11) * 2.0**-52 - 1.0


class PaddedForward:
    """What the engine is held to: transformers' own tokenizer and padded forward in float32."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, **settings
        ).eval()

    def labels(
        self, pairs: Sequence[tuple[str, str]], *, max_length: int = MAX_TOKENS, batch: int = 50
    ) -> np.ndarray:
        """Return the output of the head, (pairs, labels)."""
        found = []
        for start in range(0, len(pairs), batch):
            queries, documents = zip(*pairs[start : start + batch], strict=True)
            inputs = self.tokenizer(
                list(queries),
                list(documents),
                padding=True,
                truncation="longest_first",
                max_length=max_length,
                return_tensors="pt",
            )
            with torch.inference_mode():
                found.append(self.model(**inputs).logits.numpy())
        return np.concatenate(found)

    def logits(self, pairs: Sequence[tuple[str, str]], **settings: int) -> np.ndarray:
        """Return one logit per pair, (pairs,): of two labels the second minus the first."""
        labels = self.labels(pairs, **settings)
        return labels[:, 0] if labels.shape[1] == 1 else labels[:, 1] - labels[:, 0]


def make_pairs(count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """Make *count* pairs whose lengths run from one token a text to beyond MAX_TOKENS."""
    random = Random(seed)
    pairs = [("a", "a")]
    for number in range(count - 1):
        words = number % (MAX_TOKENS + 20) + 1
        query = 1 if number % 3 == 0 else random.randint(1, 12)
        if number % 25 == 24:  # a query that is cut too
            query = words + MAX_TOKENS
        pairs.append((_text(random, query), _text(random, words)))
    return pairs


def _text(random: Random, words: int) -> str:
    return " ".join(random.choices(WORDS, k=words))
