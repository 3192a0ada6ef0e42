"""Cross-encoders of full size with random weights, and tokenizers trained on the data.

Speed and rounding depend on shapes and lengths, not on what a model has learnt. The weights are
wide enough for attention to choose among tokens, and the head is scaled until logits spread, so
that a difference between two engines, or a swap of two documents, would show.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workloads import SHAPES, make_requests, read_texts

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

TRAINING_CHARACTERS = 4_000_000
SPREAD = 2.0
"""Standard deviation of the logits over real pairs that the head is scaled to."""


@dataclass(frozen=True, slots=True)
class Model:
    """The shape of a well-known model, as settings of its transformers config.

    *pieces* is the size of the vocabulary that its tokenizer is trained to; *reach* is the
    standard deviation of the linear layers' weights times the root of the width.
    """

    like: str
    kind: str
    tokenizer: str
    pieces: int
    longest: int
    chinese: bool = False
    reach: float = 1.0
    config: dict[str, Any] = field(default_factory=dict)


MODELS = {
    "bge-v2-m3": Model(
        "BAAI/bge-reranker-v2-m3",
        "xlm-roberta",
        "unigram",
        48_000,
        8192,
        chinese=True,
        config={
            "vocab_size": 250_002,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "max_position_embeddings": 8194,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        },
    ),
    "minilm-l6": Model(
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        "bert",
        "wordpiece",
        24_000,
        512,
        config={
            "vocab_size": 30_522,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
        },
    ),
    "gte-modernbert": Model(
        "Alibaba-NLP/gte-reranker-modernbert-base",
        "modernbert",
        "bytes",
        32_000,
        8192,
        config={
            "vocab_size": 50_368,
            "hidden_size": 768,
            "num_hidden_layers": 22,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
            "max_position_embeddings": 8192,
            "classifier_pooling": "mean",
        },
    ),
}


def ensure_model(folder: Path, name: str) -> Path:
    """Write the model of that name into a subfolder, unless a whole one is there; return it."""
    target = folder / name
    if not (target / "complete").exists():
        target.mkdir(parents=True, exist_ok=True)
        _write(target, MODELS[name])
        (target / "complete").touch()
    return target


def _write(folder: Path, row: Model) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = _save_tokenizer(folder, row)
    special = {
        key: getattr(tokenizer, key)
        for key in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        if getattr(tokenizer, key) is not None
    }
    config = AutoConfig.for_model(row.kind, num_labels=1, **row.config, **special)
    torch.manual_seed(20)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    _randomize(model, row.reach)
    _spread(model, tokenizer, row)
    model.save_pretrained(folder)
    # The shape of these models' own files: sentence-transformers reads its activation here.
    settings = json.loads((folder / "config.json").read_text())
    settings["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))


def _randomize(model: Any, reach: float) -> None:  # noqa: ANN401  torch is imported late
    import torch

    with torch.inference_mode():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0.0, reach * module.in_features**-0.5)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.normal_(0.0, 1.0)


def _spread(model: Any, tokenizer: Any, row: Model) -> None:  # noqa: ANN401  imported late
    """Scale the last layer so that the logits of real pairs have mean 0 and deviation SPREAD."""
    import torch

    (request,) = make_requests(SHAPES["web search"], 16, seed=1)
    batch = tokenizer(
        [request.query] * len(request.documents),
        list(request.documents),
        padding=True,
        truncation=True,
        max_length=row.longest,
        return_tensors="pt",
    )
    head = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.inference_mode():
        logits = model(**batch).logits[:, 0]  # (pairs,)
        scale = SPREAD / logits.std()
        head.weight.mul_(scale)
        head.bias.copy_((head.bias - logits.mean()) * scale)


def _save_tokenizer(folder: Path, row: Model) -> Any:  # noqa: ANN401  imported late
    from transformers import PreTrainedTokenizerFast

    texts = training_texts(chinese=row.chinese)
    trained = _TRAINERS[row.tokenizer](texts, row.pieces)
    names = _SPECIAL[row.tokenizer]
    segments = ["token_type_ids"] if row.kind == "bert" else []
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        model_max_length=row.longest,
        model_input_names=["input_ids", *segments, "attention_mask"],
        **names,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def training_texts(*, chinese: bool) -> list[str]:
    """Return real texts, a few million characters."""
    sources = ["dev/mtrag_un", "dev/scifact"]
    sources += ["dev/drcd_test_chunk100", "dev/xquad/xquad_zh"] if chinese else []
    share = TRAINING_CHARACTERS // len(sources)
    texts = []
    for source in sources:
        used = 0
        for text in read_texts(source, "corpus"):
            used += len(text)
            if used > share:
                break
            texts.append(text)
    return texts


_ROBERTA = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROBERTA_ENDS = {"cls_token": "<s>", "sep_token": "</s>"}
_BERT = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_SPECIAL = {"unigram": _ROBERTA | _ROBERTA_ENDS, "wordpiece": _BERT, "bytes": _BERT}


def _unigram(texts: list[str], pieces: int) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = list(_ROBERTA.values())
    tokenizer.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=pieces, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", special.index("<s>")), ("</s>", special.index("</s>"))],
    )
    return tokenizer


def _wordpiece(texts: list[str], pieces: int) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(_BERT.values())
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(vocab_size=pieces, special_tokens=special, show_progress=False),
    )
    return _bert_pairs(tokenizer, second=1)


def _bytes(texts: list[str], pieces: int) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=list(_BERT.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _bert_pairs(tokenizer, second=0)


def _bert_pairs(tokenizer: Tokenizer, *, second: int) -> Tokenizer:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS]:0 $A:0 [SEP]:0 $B:{second} [SEP]:{second}",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    return tokenizer


_TRAINERS = {"unigram": _unigram, "wordpiece": _wordpiece, "bytes": _bytes}
