"""The engines that are compared.

Every engine gets one request after the other, as a service would, and gives logits.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from language_model import BODY, INSTRUCTION, PREFIX, SUFFIX, answer_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from workloads import Request

    from rerank_plugins import RerankConfig


@dataclass(frozen=True, slots=True)
class Setup:
    """What an engine opens: a model's folder, in a precision, on a device.

    *instruction* is for language models; None is the model's own.
    """

    folder: Path
    precision: str
    max_length: int
    device: str = "cpu"
    instruction: str | None = None


class Engine(Protocol):
    """A way to score the documents of a request."""

    def use(self, batch: int | None) -> None:
        """Take batches of *batch* pairs (tokens, for this package) from now on; not timed."""

    def score(self, request: Request) -> list[float]:
        """Return the logits, in the order of the documents."""


class Ours:
    """`Reranker`, with the cleaning of texts off: the other engines clean nothing."""

    backend = "torch"

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._opened: Any = None
        self._batch: int | None = None

    def use(self, batch: int | None) -> None:
        """Open the model with that budget in tokens, and forget the pairs seen so far."""
        if self._opened is not None:
            self._opened.clear_cache()
            if batch == self._batch:
                return
            self._opened.close()
        self._batch = batch
        self._opened = self._open(batch)
        self._opened.warmup()

    def _open(self, batch: int | None) -> Any:  # noqa: ANN401  this package is imported late
        from rerank_plugins import Reranker

        return Reranker.from_config(self._config(batch))

    def _config(self, batch: int | None) -> RerankConfig:
        from rerank_plugins import RerankConfig

        return RerankConfig(
            model=str(self._setup.folder),
            backend=self.backend,
            precision=self._setup.precision,
            device=self._setup.device,
            max_length=self._setup.max_length,
            batch_tokens=batch,
            instruction=self._setup.instruction,
            normalizer=None,
            language_detector=None,
        )

    def score(self, request: Request) -> list[float]:
        """Return the logits, in the order of the documents."""
        ranking = self._opened.rank(request.query, request.documents)
        logits = [0.0] * len(request.documents)
        for document in ranking:
            if document.cached:
                raise RuntimeError("a pair came from the cache: nothing was measured")
            logits[document.index] = document.logit
        return logits


class OursOnnx(Ours):
    """The same over the model's ONNX file."""

    backend = "onnx"


class OursApart(Ours):
    """The same with every prompt computed whole: what the shared prefix brings, and what not."""

    def _open(self, batch: int | None) -> Any:  # noqa: ANN401  this package is imported late
        from rerank_plugins import Reranker
        from rerank_plugins.scorers import open_scorer

        config = self._config(batch)
        own = {name: getattr(config, name) for name in config.model_fields_set - {"model"}}
        # In a thread that ends: one that lives keeps OpenMP's threads from the engine's own.
        with ThreadPoolExecutor(1) as threads:
            scorer = threads.submit(open_scorer, config).result()
        return Reranker(_WholePrompts(scorer), **own)


class _WholePrompts:
    """A scorer whose pairs share nothing; all else is the scorer's that it is made of."""

    def __init__(self, scorer: Any) -> None:  # noqa: ANN401  this package is imported late
        self._scorer = scorer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  as it is there
        return getattr(self._scorer, name)

    def encode(self, query: str, documents: Sequence[str], **settings: object) -> list[Any]:
        """Return pairs without a prefix of their own."""
        pairs = self._scorer.encode(query, documents, **settings)
        return [replace(pair, ids=pair.all_ids, prefix=None) for pair in pairs]


class SentenceTransformers:
    """`CrossEncoder.predict`, with the one transfer of scores that it offers."""

    def __init__(self, setup: Setup) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        self._model = CrossEncoder(
            str(setup.folder),
            device=setup.device,
            max_length=setup.max_length,
            model_kwargs={"dtype": torch_type(setup.precision)},
            activation_fn=torch.nn.Identity(),
            local_files_only=True,
        )
        self._instruction = setup.instruction
        self._batch = 32

    def use(self, batch: int | None) -> None:
        """Take batches of *batch* pairs."""
        self._batch = batch or 32

    def score(self, request: Request) -> list[float]:
        """Return the logits, in the order of the documents."""
        logits = self._model.predict(
            [(request.query, document) for document in request.documents],
            prompt=self._instruction,
            batch_size=self._batch,
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        return logits.float().cpu().tolist()


class Transformers:
    """The model as transformers gives it: pairs sorted by length, each batch padded."""

    def __init__(self, setup: Setup) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._setup = setup
        self._tokenizer = AutoTokenizer.from_pretrained(setup.folder, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            setup.folder, dtype=torch_type(setup.precision), local_files_only=True
        )
        self._model = model.to(setup.device).eval()
        self._batch = 32

    def use(self, batch: int | None) -> None:
        """Take batches of *batch* pairs."""
        self._batch = batch or 32

    def score(self, request: Request) -> list[float]:
        """Return the logits, in the order of the documents."""
        import torch

        encoded = self._tokenizer(
            [request.query] * len(request.documents),
            list(request.documents),
            truncation="longest_first",
            max_length=self._setup.max_length,
        )
        order = sorted(range(len(request.documents)), key=lambda i: -len(encoded["input_ids"][i]))
        logits = torch.empty(len(order))  # (pairs,)
        with torch.inference_mode():
            for start in range(0, len(order), self._batch):
                rows = order[start : start + self._batch]
                batch = self._tokenizer.pad(
                    {name: [values[i] for i in rows] for name, values in encoded.items()},
                    return_tensors="pt",
                ).to(self._setup.device)
                logits[rows] = self._model(**batch).logits[:, 0].float().cpu()
        return logits.tolist()


class ModelCard:
    """Qwen3-Reranker's model card: left padding, and the logits of the whole vocabulary.

    As the card has them, they are of every position, of which the last is read. Pairs are sorted
    by length before they are batched, which the card leaves to its reader.
    """

    _only_last: Mapping[str, object] = {}

    def __init__(self, setup: Setup) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._setup = setup
        self._tokenizer = AutoTokenizer.from_pretrained(
            setup.folder, padding_side="left", local_files_only=True
        )
        model = AutoModelForCausalLM.from_pretrained(
            setup.folder, dtype=torch_type(setup.precision), local_files_only=True
        )
        self._model = model.to(setup.device).eval()
        self._yes, self._no = answer_ids(self._tokenizer)
        self._ends = [self._ids([text], None)[0] for text in (PREFIX, SUFFIX)]
        self._batch: int | None = None

    def use(self, batch: int | None) -> None:
        """Take batches of *batch* pairs; None is one batch of all."""
        self._batch = batch

    def score(self, request: Request) -> list[float]:
        """Return the logits, in the order of the documents."""
        import torch

        rows = self._encode(request)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        step = self._batch or len(rows)
        logits = torch.empty(len(rows))  # (pairs,)
        with torch.no_grad():
            for start in range(0, len(rows), step):
                taken = order[start : start + step]
                inputs = self._tokenizer.pad(
                    {"input_ids": [rows[i] for i in taken]}, return_tensors="pt"
                ).to(self._setup.device)
                last = self._model(**inputs, **self._only_last).logits[:, -1, :]
                answers = last[:, [self._yes, self._no]].float().cpu()
                logits[taken] = answers[:, 0] - answers[:, 1]
        return logits.tolist()

    def _encode(self, request: Request) -> list[list[int]]:
        prefix, suffix = self._ends
        instruction = self._setup.instruction or INSTRUCTION
        bodies = [
            BODY.format(instruction=instruction, query=request.query, document=document)
            for document in request.documents
        ]
        room = self._setup.max_length - len(prefix) - len(suffix)
        return [prefix + body + suffix for body in self._ids(bodies, room)]

    def _ids(self, texts: list[str], longest: int | None) -> list[list[int]]:
        return self._tokenizer(
            texts, truncation=longest is not None, max_length=longest, add_special_tokens=False
        )["input_ids"]


class LastPosition(ModelCard):
    """The same with the head at the last position only, and no keys and values kept."""

    _only_last: Mapping[str, object] = {"logits_to_keep": 1, "use_cache": False}


OURS, ST, PLAIN, ONNX = "rerank-plugins", "sentence-transformers", "transformers", "onnx"
APART = "rerank-plugins unshared"
CARD, LAST = "model card", "transformers last position"

ENGINES: dict[str, Callable[[Setup], Engine]] = {
    OURS: Ours,
    ST: SentenceTransformers,
    PLAIN: Transformers,
    ONNX: OursOnnx,
    APART: OursApart,
    CARD: ModelCard,
    LAST: LastPosition,
}


def torch_type(precision: str) -> Any:  # noqa: ANN401  torch is imported late
    """Return torch's type of a precision by name."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
