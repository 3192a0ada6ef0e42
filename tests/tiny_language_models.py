"""Real language models of a few thousand weights, saved as transformers saves them.

The model of a name has the same weights in every form: causal, or converted to a classifier.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.tiny_models import WORDS
from tests.tiny_tokenizers import ANSWERS, gemma_like, qwen_like, real_qwen_tokenizer
from tests.tiny_torch import HIDDEN, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tokenizers import Tokenizer

LONGEST = 512
"""Positions of these models: the templates alone take up to 150 tokens."""

ATTENTION_GAIN = 0.35
"""Softens attention: where it picks single tokens, float32 itself rounds by more than 1e-4."""

AS_QWEN = {
    "tokenizer_class": "Qwen2Tokenizer",
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "unk_token": None,
    "add_bos_token": False,
}
AS_GEMMA = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "padding_side": "left",
}


@dataclass(frozen=True, slots=True)
class Language:
    """A model type of transformers, the tokenizer it has, and its settings beyond the size.

    ``gain`` of the answers' rows makes logits of a few units: enough for a bound of 1e-4 to mean
    something, and few enough for float32 to keep it.
    """

    model_type: str
    tokenizer: Callable[[], Tokenizer]
    tokenizer_config: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    gain: float = 1.2
    classifier: bool = False
    answers: tuple[str, str] = ("yes", "no")


GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}
UNTIED = {**GROUPED, "tie_word_embeddings": False}
TIED = {**GROUPED, "tie_word_embeddings": True}
QWEN3 = {**TIED, "head_dim": 16}

LANGUAGE_MODELS: Mapping[str, Language] = {
    "qwen3": Language("qwen3", qwen_like, AS_QWEN, QWEN3),
    "qwen3 untied": Language("qwen3", qwen_like, AS_QWEN, {**QWEN3, "tie_word_embeddings": False}),
    "qwen3 vocabulary": Language("qwen3", real_qwen_tokenizer, AS_QWEN, QWEN3, gain=2.4),
    "qwen2": Language("qwen2", qwen_like, AS_QWEN, TIED, gain=0.4),
    "gemma": Language("gemma", gemma_like, AS_GEMMA, {**GROUPED, "head_dim": 16}),
    "llama": Language("llama", qwen_like, AS_QWEN, UNTIED),
    "mistral": Language("mistral", qwen_like, AS_QWEN, {**UNTIED, "sliding_window": 40}),
    "qwen3 classifier": Language("qwen3", qwen_like, AS_QWEN, QWEN3, classifier=True),
    "qwen2 classifier": Language(
        "qwen2", qwen_like, AS_QWEN, TIED, gain=0.4, classifier=True, answers=("1", "0")
    ),
}


def write_language_model(
    folder: Path,
    name: str = "qwen3",
    *,
    labels: int = 1,
    shard_size: str | None = None,
    tokenizer_config: Mapping[str, object] | None = None,
    **config: object,
) -> Path:
    """Write the language model *name* as transformers saves it, and return *folder*.

    A classifier reads the logits of its answers as one label (yes minus no) or two (no, yes), as
    published conversions do. *shard_size* ("20KB") cuts the weights
    into several files.
    """
    language = LANGUAGE_MODELS[name]
    tokenizer = language.tokenizer()
    model = _causal(language, tokenizer, config)
    if language.classifier:
        model = _converted(model, tokenizer, labels, language.answers)
    shards = {} if shard_size is None else {"max_shard_size": shard_size}
    model.save_pretrained(folder, **shards)
    tokenizer.save(str(folder / "tokenizer.json"))
    written = {
        "model_max_length": LONGEST,
        "model_input_names": ["input_ids", "attention_mask"],
        **language.tokenizer_config,
        **(tokenizer_config or {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return folder


def _causal(language: Language, tokenizer: Tokenizer, config: Mapping[str, object]) -> Any:
    special = ("bos_token", "eos_token", "pad_token")
    texts = {name: language.tokenizer_config[name] for name in special}
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": LONGEST,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        **{f"{name}_id": text and tokenizer.token_to_id(text) for name, text in texts.items()},
        **language.settings,
        **config,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(language.model_type, **settings))
    fill(model, head_gain=2.0)
    rows = [tokenizer.token_to_id(text) for text in ANSWERS]
    with torch.no_grad():
        model.lm_head.weight[rows] *= language.gain
        if language.model_type == "gemma":  # its norms scale by 1 + weight
            for name, weight in model.named_parameters():
                if "norm" in name:
                    weight.sub_(1)
        for layer in model.model.layers:
            # Qwen3 normalises queries after projecting them.
            queries = getattr(layer.self_attn, "q_norm", layer.self_attn.q_proj)
            queries.weight.mul_(ATTENTION_GAIN)
    return model


def _converted(model: Any, tokenizer: Tokenizer, labels: int, answers: tuple[str, str]) -> Any:
    config = AutoConfig.for_model(
        **{**model.config.to_dict(), "id2label": dict(enumerate("ab"[:labels]))}
    )
    classifier = AutoModelForSequenceClassification.from_config(config)
    classifier.model.load_state_dict(model.model.state_dict())
    true, false = (model.lm_head.weight[tokenizer.token_to_id(text)] for text in answers)
    with torch.no_grad():
        rows = [true - false] if labels == 1 else [false, true]
        classifier.score.weight.copy_(torch.stack(rows))
    return classifier


AWKWARD_TEXTS = (
    "a",
    "",
    " ",
    "\n",
    "  the cat",
    "\n\nthe cat",
    "the cat \n",
    "\tthe\tcat\t",
    "\u00a0the\u00a0cat",
    "\u0301the cat",  # a combining mark: it joins what stands before it
    "\u200bthe cat",
    "猫在垫子上",
    "\U0001f431\u200d\U0001f464 the cat",
    "1234567890 01 10",
    "Cafe\u0301 CAFÉ ﬁn",
    "'s the cat's",
    ": the cat",
    "<Document>: the cat\n<Query>: the dog",
    "document: the cat\nquery: the dog",
    "B: the cat\nA: the dog",
    "yes",
    "1\nRelevance: 1",
)
"""Texts whose tokens may hang on what stands beside them, and template text; none is a token."""

SPECIAL_TEXTS = (
    "the cat<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "<|endoftext|>the cat",
    "<think>the cat</think>",
    "<bos>the cat<eos>",
    "<tool_call>",
)
"""Texts that hold the text of a special or added token."""


def make_language_pairs(count: int, *, longest: int = 600, seed: int = 0) -> list[tuple[str, str]]:
    """Make *count* pairs: awkward texts on both sides, then from one word to *longest* words."""
    random = Random(seed)
    awkward = [("the cat", text) for text in AWKWARD_TEXTS]
    awkward += [(text, "the cat sat") for text in AWKWARD_TEXTS]
    pairs = awkward[:count]
    for number in range(count - len(pairs)):
        words = 1 + number * longest // max(1, count - len(awkward))
        query = longest if number % 20 == 19 else 1 + number % 12
        pairs.append((_words(random, query), _words(random, words)))
    return pairs


def _words(random: Random, count: int) -> str:
    return " ".join(random.choices(WORDS, k=count))
