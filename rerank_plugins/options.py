"""What a setting may be, where it is one of a few words."""

from __future__ import annotations

from enum import StrEnum

EMBEDDED = "embedded"
"""The model that ships with this package: English, no download."""

LEXICAL = "lexical"
"""Word overlap weighted by background frequencies: any language, no model."""

RETRIEVAL_ORDER = "retrieval_order"
"""The end of a fallback chain: documents as they were given, best first."""


class Backend(StrEnum):
    """What runs the model; ``auto`` follows from its name, its files and what is installed."""

    AUTO = "auto"
    TORCH = "torch"
    ONNX = "onnx"
    LEXICAL = "lexical"
    REMOTE = "remote"


class Dialect(StrEnum):
    """How a reranking server is spoken to; ``auto`` asks it what it is.

    Of ``tei`` (Text Embeddings Inference), ``infinity``, ``vllm`` and ``nim`` logits are had; of
    ``jina`` and ``cohere``, and what is compatible with them, scores alone.
    """

    AUTO = "auto"
    TEI = "tei"
    INFINITY = "infinity"
    VLLM = "vllm"
    JINA = "jina"
    COHERE = "cohere"
    NIM = "nim"


SCORES_ALONE = frozenset({Dialect.JINA, Dialect.COHERE})
"""Dialects in which no logit can be had."""


class Precision(StrEnum):
    """Number format of the weights: of the ONNX file that is taken, or that torch computes in.

    In torch, ``int8`` and ``int4`` are how weights are kept; it computes in what ``auto`` would.
    """

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


WEIGHT_ONLY = frozenset({Precision.INT8, Precision.INT4})
"""Formats that torch keeps weights in, and computes in none of."""


class Truncation(StrEnum):
    """What is cut where a pair is longer than ``max_length``.

    ``auto`` is what the model's reference does: ``longest_first`` for cross-encoders, the rule of
    its family for a language model. ``longest_first`` cuts the longer of the two texts, token by
    token, as transformers and sentence-transformers do. ``only_second`` caps the query at three
    quarters of ``max_length`` and then cuts the document alone, as FlagEmbedding does.
    """

    AUTO = "auto"
    LONGEST_FIRST = "longest_first"
    ONLY_SECOND = "only_second"


class SpecialTokens(StrEnum):
    """What the text of a special token ("</s>", "<|im_end|>") is inside a query or document.

    ``plain`` spells it out like any other text, so that a document cannot pretend to end, or to be
    a query. ``parse`` makes it the token, as the reference code of most models does.
    """

    PLAIN = "plain"
    PARSE = "parse"


class LongDocuments(StrEnum):
    """What becomes of a document that is longer than a pair has room for.

    ``truncate`` scores its beginning. ``window`` scores all of it in windows that overlap, and
    ``window_score`` says how their logits become one.
    """

    TRUNCATE = "truncate"
    WINDOW = "window"


class WindowScore(StrEnum):
    """What the logits of a document's windows come to."""

    MAX = "max"
    MEAN = "mean"


class Duplicates(StrEnum):
    """What becomes of documents whose text another one before them has; each is scored once.

    ``keep`` ranks every one. ``drop`` ranks the first and lists the rest in `Ranking.dropped`.
    """

    KEEP = "keep"
    DROP = "drop"


class Activation(StrEnum):
    """What turns a logit into a score; ``auto`` is what the model's own settings say."""

    AUTO = "auto"
    SIGMOID = "sigmoid"
    LOGIT = "logit"


class WhenFull(StrEnum):
    """What a new request meets where as many tokens wait as ``queue_tokens`` allows.

    ``raise`` refuses it with `QueueFullError`; ``wait`` lets it wait for room, up to its deadline.
    """

    RAISE = "raise"
    WAIT = "wait"


class Priority(StrEnum):
    """Which requests go first: ``interactive`` ones pass ``bulk`` ones, which never starve."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class OnError(StrEnum):
    """What a caller gets where the model fails, is late or has no room.

    ``raise`` is the error; ``fallback`` the answer of the next in the setting ``fallback``.
    """

    RAISE = "raise"
    FALLBACK = "fallback"
