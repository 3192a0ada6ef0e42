"""The engines that are compared, each in a process of its own.

A process of its own gives each engine its own peak of memory, and keeps threads and caches apart.
Every engine gets one request after the other, as a service would, and gives logits.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path
    from typing import Self

    from workloads import Request

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Setup:
    """What an engine opens: a model's folder, in a precision, on a device."""

    folder: Path
    precision: str
    max_length: int
    device: str = "cpu"


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
        from rerank_plugins import Reranker

        if self._opened is not None:
            self._opened.clear_cache()
            if batch == self._batch:
                return
            self._opened.close()
        self._batch = batch
        self._opened = Reranker(
            str(self._setup.folder),
            backend=self.backend,
            precision=self._setup.precision,
            device=self._setup.device,
            max_length=self._setup.max_length,
            batch_tokens=batch,
            normalizer=None,
            language_detector=None,
        )
        self._opened.warmup()

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
        self._batch = 32

    def use(self, batch: int | None) -> None:
        """Take batches of *batch* pairs."""
        self._batch = batch or 32

    def score(self, request: Request) -> list[float]:
        """Return the logits, in the order of the documents."""
        logits = self._model.predict(
            [(request.query, document) for document in request.documents],
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


OURS, ST, PLAIN, ONNX = "rerank-plugins", "sentence-transformers", "transformers", "onnx"

ENGINES: dict[str, Callable[[Setup], Engine]] = {
    OURS: Ours,
    ST: SentenceTransformers,
    PLAIN: Transformers,
    ONNX: OursOnnx,
}


def torch_type(precision: str) -> Any:  # noqa: ANN401  torch is imported late
    """Return torch's type of a precision by name."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


class Worker:
    """An engine in another process; leave the context to end it."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, setup), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()
        self._process.join(timeout=60)
        self._process.kill()

    def score(
        self, requests: Sequence[Request], batch: int | None
    ) -> tuple[list[list[float]], float]:
        """Return the logits of each request, and the seconds that all took."""
        logits, seconds = self._ask(("score", requests, batch))
        return logits, seconds

    def peak_gib(self) -> float:
        """Most memory so far in GiB: of the CUDA device where it runs on one, else resident."""
        return self._ask(("peak", None, None))

    def _ask(self, message: tuple[str, Sequence[Request] | None, int | None]) -> Any:  # noqa: ANN401
        try:
            self._connection.send(message)
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            code = self._process.exitcode
            raise SystemExit(f"{self.name}: its process ended with status {code}") from None
        if isinstance(answer, str):
            raise SystemExit(f"{self.name} failed:\n{answer}")
        return answer


def _serve(connection: Connection, name: str, setup: Setup) -> None:
    """Answer what the parent asks until it hangs up."""
    # Nothing is loaded by name here, and no hub is to be asked whether something is new.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    engine: Engine | None = None
    while True:
        try:
            message, requests, batch = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if message == "peak":
                connection.send(_peak_gib(setup.device))
                continue
            engine = engine or ENGINES[name](setup)
            engine.use(batch)
            started = time.perf_counter()
            logits = [engine.score(request) for request in requests]
            connection.send((logits, time.perf_counter() - started))
        # Whatever an engine raises is shown by the parent, which then ends the run.
        except Exception:  # noqa: BLE001
            connection.send(traceback.format_exc())


def _peak_gib(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB, but on macOS in bytes.
    return peak / (GIB if sys.platform == "darwin" else GIB / 1024)
