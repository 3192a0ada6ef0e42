"""Language-model rerankers as their model cards run them: what the engine is held to.

Everything is plain on purpose: whole texts, padding on the left, the logits of all positions.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

QWEN_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
QWEN_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
QWEN_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

MXBAI_PREFIX = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\n"
)
MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For "
    "each query-document pair, carefully analyze the semantic relationship between them, then "
    "provide your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
)
MXBAI_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"

GEMMA_INSTRUCTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)

MAX_LENGTHS = {
    "qwen3-reranker": 8192,
    "mxbai-rerank-v2": 8192,
    "bge-reranker-gemma": 1024,
    "FlagEmbedding": 512,
}
ANSWERS = {
    "qwen3-reranker": ("yes", "no"),
    "mxbai-rerank-v2": ("1", "0"),
    "bge-reranker-gemma": ("Yes", None),
    "FlagEmbedding": ("Yes", None),
}

ENDS = {
    "qwen3-reranker": QWEN_SUFFIX,
    "mxbai-rerank-v2": f"\n{MXBAI_TASK}{MXBAI_SUFFIX}",
    "bge-reranker-gemma": f"\n{GEMMA_INSTRUCTION}",
    "FlagEmbedding": f"\n{GEMMA_INSTRUCTION}",
}
"""What every prompt of a family ends with."""


class ModelCard:
    """A reranker of *family*, run as its card or its makers' library does, in float32.

    A converted checkpoint is asked like the language model that it came from.
    """

    def __init__(
        self,
        folder: Path,
        family: str,
        *,
        instruction: str | None = None,
        max_length: int | None = None,
    ) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        config = json.loads((folder / "config.json").read_text())
        self.converted = config["architectures"][0].endswith("ForSequenceClassification")
        kind = AutoModelForSequenceClassification if self.converted else AutoModelForCausalLM
        self.model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.instruction = instruction
        self.max_length = max_length or MAX_LENGTHS[family]
        self.answers = ANSWERS[family]
        self._ids = _IDS[family]

    def ids(self, query: str, document: str) -> list[int]:
        """Return the token ids that the model gets for a pair."""
        return self._ids(self, query, document)

    def tokens(self, text: str, max_length: int | None = None) -> list[int]:
        """Return the ids of one text, cut on the right where it is longer than *max_length*."""
        cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
        return self.tokenizer(text, add_special_tokens=False, **cut)["input_ids"]

    def longest(self) -> int:
        """Return the most tokens that a prompt has: ``max_length`` is not that in every family."""
        much = "the cat sat on the mat " * self.max_length
        return max(len(self.ids(query, much)) for query in ("the cat", much))

    def logits(self, pairs: Sequence[tuple[str, str]], *, batch: int | None = None) -> np.ndarray:
        """Return one logit per pair, (pairs,)."""
        if batch is None:  # the logits of a real vocabulary take 600 KB a token
            batch = 32 if len(self.tokenizer) < 10_000 else 2
        found = []
        for start in range(0, len(pairs), batch):
            rows = [{"input_ids": self.ids(*pair)} for pair in pairs[start : start + batch]]
            inputs = self.tokenizer.pad(rows, padding=True, return_tensors="pt")
            with torch.inference_mode():
                found.append(self._answer(self.model(**inputs).logits))
        return np.concatenate(found)

    def _answer(self, logits: torch.Tensor) -> np.ndarray:
        if self.converted:  # (pairs, labels): transformers has picked the last position
            one = logits.shape[1] == 1
            return (logits[:, 0] if one else logits[:, 1] - logits[:, 0]).numpy()
        last = logits[:, -1, :]  # (pairs, vocabulary)
        true, false = (answer and self.tokens(answer)[0] for answer in self.answers)
        return (last[:, true] - (0 if false is None else last[:, false])).numpy()


def _qwen_ids(card: ModelCard, query: str, document: str) -> list[int]:
    """Prefix, body and suffix are tokenized alone; the body is one text, and the only one cut."""
    prefix, suffix = card.tokens(QWEN_PREFIX), card.tokens(QWEN_SUFFIX)
    instruction = QWEN_INSTRUCTION if card.instruction is None else card.instruction
    body = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    room = card.max_length - len(prefix) - len(suffix)
    return [*prefix, *card.tokens(body, room), *suffix]


def _mxbai_ids(card: ModelCard, query: str, document: str) -> list[int]:
    """Every piece is tokenized alone; ``max_length`` is that of the two texts without the rest."""
    prefix, suffix = card.tokens(MXBAI_PREFIX), card.tokens(MXBAI_SUFFIX)
    between, task = card.tokens("\n"), card.tokens(MXBAI_TASK)
    predefined = len(prefix) + len(task) + len(suffix) + len(between)
    positions = card.model.config.max_position_embeddings
    max_length = min(card.max_length, positions - predefined)
    asked = f"instruction: {card.instruction}\nquery: " if card.instruction else "query: "
    query_ids = card.tokens(asked + query, max_length * 3 // 4)
    longest = min(positions - len(query_ids) - predefined, max_length)
    document_ids = [*between, *card.tokens(f"document: {document}", longest)]
    pair = only_second(query_ids, document_ids, max_length)
    return [*prefix, *pair, *between, *task, *suffix]


def _gemma_ids(card: ModelCard, query: str, document: str) -> list[int]:
    """``max_length`` is that of what stands before the last line break."""
    return _gemma_pair(card, query, document, 0)


def _flag_embedding_ids(card: ModelCard, query: str, document: str) -> list[int]:
    """The library cuts later than the card: by as much as the line break and the prompt take."""
    return _gemma_pair(card, query, document, len(_gemma_end(card)))


def _gemma_pair(card: ModelCard, query: str, document: str, more: int) -> list[int]:
    query_ids = card.tokens(f"A: {query}", card.max_length * 3 // 4)
    document_ids = card.tokens(f"B: {document}", card.max_length)
    first = [card.tokenizer.bos_token_id, *query_ids]
    pair = only_second(first, [*card.tokens("\n"), *document_ids], card.max_length + more)
    return [*pair, *_gemma_end(card)]


def _gemma_end(card: ModelCard) -> list[int]:
    asked = GEMMA_INSTRUCTION if card.instruction is None else card.instruction
    return [*card.tokens("\n"), *card.tokens(asked)]


def only_second(first: list[int], second: list[int], max_length: int) -> list[int]:
    """Join two texts and cut the second, as ``prepare_for_model`` of transformers 4 did.

    It left a pair too long where the second text would have been cut away whole.
    """
    excess = len(first) + len(second) - max_length
    if 0 < excess < len(second):
        second = second[:-excess]
    return [*first, *second]


_IDS: Mapping[str, Callable[[ModelCard, str, str], list[int]]] = {
    "qwen3-reranker": _qwen_ids,
    "mxbai-rerank-v2": _mxbai_ids,
    "bge-reranker-gemma": _gemma_ids,
    "FlagEmbedding": _flag_embedding_ids,
}


def write_chat_template(folder: Path, template: str | None = None) -> None:
    """Write a chat template of the roles system (the instruction), query and document."""
    text = QWEN_TEMPLATE if template is None else template
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _role(role: str) -> str:
    chosen = f'messages | selectattr("role", "eq", "{role}")'
    return f'{{{{ {chosen} | map(attribute="content") | first }}}}'


def _literal(text: str) -> str:
    return f"{{{{ {json.dumps(text)} }}}}"


QWEN_TEMPLATE = (
    '{%- set system = messages | selectattr("role", "eq", "system") | list -%}\n'
    f"{_literal(QWEN_PREFIX + '<Instruct>: ')}"
    f"{{% if system %}}{_role('system')}{{% else %}}{_literal(QWEN_INSTRUCTION)}{{% endif %}}"
    f"{_literal(chr(10) + '<Query>: ')}{_role('query')}"
    f"{_literal(chr(10) + '<Document>: ')}{_role('document')}{_literal(QWEN_SUFFIX)}"
)


def write_sentence_transformers(
    folder: Path, *, true: str = "yes", false: str | None = "no", prompts: Any = None
) -> None:
    """Write the files from which sentence-transformers knows a language model for a reranker.

    *prompts* are named instructions; the one named "default" is used where none is asked for.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = "sentence_transformers.base.modules.transformer.Transformer"
    head = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": base},
        {"idx": 1, "name": "1", "path": "1_LogitScore", "type": head},
    ]
    forward = {"method": "forward", "method_output_name": "logits"}
    settings = {
        "transformer_task": "text-generation",
        "modality_config": {"text": forward, "message": {**forward, "format": "flat"}},
        "module_output_name": "causal_logits",
    }
    score = {
        "true_token_id": tokenizer.convert_tokens_to_ids(true),
        "false_token_id": None if false is None else tokenizer.convert_tokens_to_ids(false),
    }
    saved = {
        "model_type": "CrossEncoder",
        "activation_fn": "torch.nn.modules.linear.Identity",
        "prompts": prompts or {},
        "default_prompt_name": "default" if prompts and "default" in prompts else None,
    }
    (folder / "1_LogitScore").mkdir(exist_ok=True)
    for path, content in (
        ("modules.json", modules),
        ("sentence_bert_config.json", settings),
        ("1_LogitScore/config.json", score),
        ("config_sentence_transformers.json", saved),
    ):
        (folder / path).write_text(json.dumps(content))


def sentence_transformers_logits(
    folder: Path,
    pairs: Sequence[tuple[str, str]],
    *,
    max_length: int | None = None,
    **settings: Any,
) -> np.ndarray:
    """Return what sentence-transformers answers for *pairs* in float32, without an activation."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        str(folder),
        device="cpu",
        max_length=max_length,
        activation_fn=torch.nn.Identity(),
        model_kwargs={"dtype": torch.float32},
    )
    return model.predict(list(pairs), batch_size=8, **settings)
