"""Tokenizers of language models: small ones trained here, and Qwen's own from the data folder."""

from __future__ import annotations

import gzip
import json
import os
from functools import cache
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.tiny_models import WORDS

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = (
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
QWEN_ADDED = (
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
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
GEMMA_ADDED = ("\n", "\n\n", "<table>")

ANSWERS = ("yes", "no", "Yes", "No", "0", "1")
TEMPLATE_WORDS = (
    "system user assistant instruction Instruct Query Document query document A B You are Given a "
    "passage relevance Relevance Judge whether the meets requirements based on and provided Note "
    "that answer can only be or web search retrieve relevant passages determine contains"
)
TRAINING_TEXT = (
    " ".join([*WORDS, *ANSWERS, TEMPLATE_WORDS]),
    "".join(f"{answer}\n" for answer in ANSWERS),
    "<Instruct>: a\n<Query>: b\n<Document>: c\n\nquery: the\ndocument: the\n",
    "A: the\nB: a cat's, (dog).\n\n  tree    river \t bank",
    "的猫 的猫 Où est l'été",
)


@cache
def qwen_like() -> Tokenizer:
    """Return a tokenizer of a few hundred tokens whose parts are those of Qwen's."""
    tokenizer = _as_qwen(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text for text in TRAINING_TEXT for _ in range(4)], trainer)
    return _with_qwen_tokens(tokenizer)


@cache
def real_qwen_tokenizer() -> Tokenizer:
    """Return Qwen3's tokenizer; skips the test where the data folder is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RERANK_PLUGINS_DATA", beside)) / "tokenizers" / "qwen"
    if not folder.is_dir():
        pytest.skip(f"no vocabulary of Qwen in {folder}; set RERANK_PLUGINS_DATA")
    vocabulary = json.loads(gzip.decompress((folder / "vocab.json.gz").read_bytes()))
    lines = gzip.decompress((folder / "merges.txt.gz").read_bytes()).decode().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return _with_qwen_tokens(_as_qwen(models.BPE(vocabulary, merges)))


def _as_qwen(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_qwen_tokens(tokenizer: Tokenizer) -> Tokenizer:
    special = [AddedToken(token, special=True, normalized=False) for token in QWEN_SPECIAL]
    plain = [AddedToken(token, special=False, normalized=False) for token in QWEN_ADDED]
    tokenizer.add_tokens([*special, *plain])
    return tokenizer


@cache
def gemma_like() -> Tokenizer:
    """Return a tokenizer whose parts are those of Gemma's: one word of BPE is the whole text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # SentencePiece learns within words; runs of spaces are pieces too.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁\n]*"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=1100,
        show_progress=False,
        special_tokens=[*GEMMA_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[*map(chr, range(33, 127)), "▁"],
    )
    tokenizer.train_from_iterator([text for text in TRAINING_TEXT for _ in range(4)], trainer)
    # Trained with the bytes as special tokens, they would be found in texts.
    trained = json.loads(tokenizer.to_str())
    trained["added_tokens"] = []
    trained["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in GEMMA_SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in GEMMA_ADDED])
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos>:0 $A:0", pair="<bos>:0 $A:0 <bos>:1 $B:1", special_tokens=[("<bos>", bos)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer
