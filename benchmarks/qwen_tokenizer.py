"""The tokenizer of Qwen3: its own vocabulary from the data folder, or one trained in its place."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

from full_size import training_texts
from workloads import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
"""Added tokens that are no special ones: decoding keeps them."""

TRAINED_PIECES = 32_000


def qwen_tokenizer() -> Tokenizer:
    """Return it with its 26 added tokens, in their order after the vocabulary's."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    folder = DATA / "tokenizers" / "qwen"
    tokenizer = Tokenizer(models.BPE())
    if folder.is_dir():
        vocabulary = json.loads(_unpacked(folder / "vocab.json.gz"))
        lines = _unpacked(folder / "merges.txt.gz").splitlines()[1:]  # the first is its version
        merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    split = Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    if not folder.is_dir():
        _train(tokenizer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in MARKS])
    return tokenizer


def _train(tokenizer: Tokenizer) -> None:
    """Learn merges from the texts of the other models' tokenizers, with the answers as tokens."""
    from tokenizers import pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED_PIECES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    answers = ['"yes" or "no"'] * 1000
    tokenizer.train_from_iterator([*answers, *training_texts(chinese=True)], trainer)


def _unpacked(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return lines.read()
