"""Cross-encoders in ONNX files, run by onnxruntime."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from rerank_plugins.config import Activation, Backend, Precision
from rerank_plugins.errors import ConfigError, ModelLoadError, ScoringError, first_line
from rerank_plugins.models.encoding import PairEncoder, TokenPair
from rerank_plugins.models.files import find_model
from rerank_plugins.models.manifest import MANIFEST, preferred_files, read_manifest
from rerank_plugins.models.settings import longest_pair, model_activation, pad_id
from rerank_plugins.models.weights import USUAL_NAMES, choose_onnx, wanted_precisions
from rerank_plugins.scorers.processor import cpu_features, read_cpuinfo
from rerank_plugins.scorers.runtime import import_onnxruntime, session_options
from rerank_plugins.scorers.selection import (
    Choice,
    as_set,
    backend_choice,
    installed_backends,
    unread,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.models.weights import ChooseFiles

logger = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

CPU_BATCH_TOKENS = 2048
"""Enough rows to fill a matrix product; more only widens the padding and leaves the caches."""

CUDA_BATCH_TOKENS = 16_384
"""A GPU is filled by far more rows; the same budget as text-embeddings-inference."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxScorer:
    """Scores pairs with a cross-encoder exported to ONNX.

    A head of one label gives its output as the logit. A head of two gives the second minus the
    first, so that the sigmoid of the logit is the softmax probability of the second.
    """

    padded = True
    languages: frozenset[str] | None = None

    def __init__(
        self,
        files: ModelFiles,
        session: _Session,
        encoder: PairEncoder,
        *,
        activation: Literal["sigmoid", "logit"],
        pad_id: int,
        choices: Mapping[str, Choice],
    ) -> None:
        self.name = files.name
        self.choices = choices
        self.activation = activation
        self.batch_tokens = CUDA_BATCH_TOKENS if session.provider == CUDA else CPU_BATCH_TOKENS
        self.identity = (
            f"onnx {files.name}@{files.version} {files.weights[0].name} on {session.provider}, "
            f"{encoder.truncation} at {encoder.max_length}, template {_digest(encoder.template)}"
        )
        self._session: _Session | None = session
        self._encoder = encoder
        self.pad_id = pad_id

    @classmethod
    def open(cls, config: RerankConfig, files: ModelFiles | None = None) -> Self:
        """Load a model's files, found here unless given, and score a pair to see that it ranks.

        Raises:
            ConfigError: device or max_length is not what this machine or model offers.
            MissingExtraError: onnxruntime is not installed.
            ModelLoadError: the files are not there, broken, or not those of a cross-encoder.
        """
        ort = import_onnxruntime('backend "onnx"')
        device = choose_device(config.device, ort.get_available_providers())
        if files is None:
            files = find_model(
                config.model,
                choose=files_here(config),
                revision=config.revision,
                local_files_only=config.local_files_only,
            )
        max_length = longest_pair(files, config.max_length)
        activation = model_activation(files, must_know=config.activation is Activation.AUTO)
        session = _Session(ort, files, device, must_start=config.device != "auto")
        tokenizer = _load_tokenizer(files)
        try:
            encoder = PairEncoder(
                tokenizer,
                max_length=max_length,
                truncation=config.truncation,
                cut_left=files.tokenizer_config.get("truncation_side") == "left",
                segments="token_type_ids" in session.inputs,
            )
        # The tokenizers library raises plain Exception.
        except Exception as exc:
            raise ModelLoadError(files.name, f"its tokenizer cannot encode a pair: {exc}") from exc
        padding = pad_id(files, tokenizer.token_to_id)
        choices = _choices(config, files, session, max_length)
        scorer = cls(
            files, session, encoder, activation=activation, pad_id=padding, choices=choices
        )
        scorer._check_head()
        return scorer

    def encode(self, query: str, documents: Sequence[str]) -> list[TokenPair]:
        """Encode one query with each document, in order; safe in many threads."""
        return self._encoder.encode(query, documents)

    def forward(self, pairs: Sequence[TokenPair]) -> NDArray[np.float32]:
        """Score one batch, padded to its longest pair; returns (pairs,).

        Raises:
            ScoringError: onnxruntime failed, out of memory included.
        """
        if not pairs:
            return np.empty(0, dtype=np.float32)
        labels = self._run(pairs)  # (pairs, 1 or 2)
        # Half precision is widened before the difference is taken, not after.
        logits = labels.astype(np.float32)
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]

    def close(self) -> None:
        """Let go of the session and its memory."""
        self._session = None

    def _run(self, pairs: Sequence[TokenPair]) -> NDArray[np.floating]:
        if self._session is None:
            raise ScoringError(f"{self.name} was closed")
        batch = pad(pairs, self.pad_id)
        try:
            return self._session.run(batch)
        # onnxruntime's exceptions share no base but Exception.
        except Exception as exc:
            rows, longest = batch["input_ids"].shape
            advice = "; lower batch_tokens or max_length" if _out_of_memory(exc) else ""
            raise ScoringError(
                f"onnxruntime failed on {rows} pairs of up to {longest} tokens{advice}: "
                f"{first_line(exc)}"
            ) from exc

    def _check_head(self) -> None:
        try:
            labels = self._run(self.encode("a query", ["and its document"]))
        except ScoringError as exc:
            raise ModelLoadError(self.name, f"a trial run failed: {exc}") from exc
        if labels.shape not in {(1, 1), (1, 2)}:
            kind = "an embedding model" if labels.ndim == 3 else "another kind of model"
            raise ModelLoadError(
                self.name,
                f"it is not a cross-encoder with one or two labels but {kind}: one pair gave an "
                f"output of shape {labels.shape}",
            )


class _Session:
    """A loaded graph: what it runs on, what it asks for, and how to run it."""

    def __init__(
        self, ort: ModuleType, files: ModelFiles, device: int | None, *, must_start: bool
    ) -> None:
        providers: list[object] = [CPU]
        if device is not None:
            providers.insert(0, (CUDA, {"device_id": device}))
        try:
            self._session = ort.InferenceSession(
                os.fspath(files.weights[0]), sess_options=session_options(ort), providers=providers
            )
        # onnxruntime's exceptions share no base but Exception.
        except Exception as exc:
            raise ModelLoadError(
                files.name,
                f"onnxruntime cannot read {files.weights[0].name}; it may be broken, half "
                f"downloaded, or without its external data: {first_line(exc)}",
            ) from exc
        self.offers_cuda = device is not None
        self.provider: str = self._session.get_providers()[0]
        self.device = f"cuda:{device}" if self.provider == CUDA else "cpu"
        if device is not None and self.provider != CUDA:
            problem = (
                "onnxruntime offers CUDA but could not start it (see its message above; the "
                "driver, CUDA or cuDNN libraries may be missing)"
            )
            if must_start:
                raise ConfigError(f'device: {problem}; use device="cpu"')
            logger.warning("%s: running on CPU", problem)
        types = {node.name: node.type for node in self._session.get_inputs()}
        if unknown := sorted(types.keys() - set(INPUTS)):
            raise ModelLoadError(
                files.name,
                f"{files.weights[0].name} asks for the inputs {', '.join(unknown)}, which a "
                f"cross-encoder does not have; known are {', '.join(INPUTS)}",
            )
        self.inputs = {name: INTEGERS.get(kind, np.int64) for name, kind in types.items()}
        outputs = [node.name for node in self._session.get_outputs()]
        self._output = "logits" if "logits" in outputs else outputs[0]

    def run(self, batch: dict[str, NDArray[np.int64]]) -> NDArray[np.floating]:
        """Return the labels, (pairs, labels)."""
        feeds = {name: batch[name].astype(kind, copy=False) for name, kind in self.inputs.items()}
        labels: NDArray[np.floating] = self._session.run([self._output], feeds)[0]
        return labels


def choose_device(device: str, offered: Sequence[str]) -> int | None:
    """Return the number of the CUDA device to run on, or None for the CPU.

    Raises:
        ConfigError: *device* is not a device, or not among what onnxruntime offers.
    """
    found = re.fullmatch(r"(auto|cpu|cuda)|cuda:(\d+)", device)
    if device == "mps":
        raise ConfigError('device: onnxruntime has no "mps", PyTorch weights do; use device="cpu"')
    if found is None:
        raise ConfigError(f'device: expected "auto", "cpu", "cuda" or "cuda:N", got {device!r}')
    if device == "cpu" or (device == "auto" and CUDA not in offered):
        return None
    if CUDA not in offered:
        raise ConfigError(
            f"device: this onnxruntime has no CUDA, it offers {', '.join(offered)}; got "
            f"{device!r}. CUDA comes with onnxruntime-gpu in place of onnxruntime: "
            'pip uninstall onnxruntime; pip install "rerank-plugins[onnx-gpu]"'
        )
    return int(found[2] or 0)


def precisions_here(config: RerankConfig) -> tuple[Precision, ...]:
    """Return the precisions to take on this machine, best first."""
    return wanted_precisions(config.precision, cuda=_on_cuda(config))


def _on_cuda(config: RerankConfig) -> bool:
    if config.device == "auto" and Backend.ONNX in installed_backends():
        return CUDA in import_onnxruntime('backend "onnx"').get_available_providers()
    return config.device.startswith("cuda")


def files_here(config: RerankConfig) -> ChooseFiles:
    """Return what picks the ONNX file for this machine: by an export's manifest, then by name.

    The manifest is read in a local folder; of a hub model, names are all that is known here.
    """
    records = {}
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        records = read_manifest(folder, config.model)
    preferred = preferred_files(
        records,
        config.precision,
        cuda=_on_cuda(config),
        cpu_features=cpu_features(read_cpuinfo()) if records else (),
    )
    return partial(choose_onnx, wanted=precisions_here(config), preferred=preferred)


def _choices(
    config: RerankConfig, files: ModelFiles, session: _Session, max_length: int
) -> dict[str, Choice]:
    """Return what the settings came to, and why, for whoever asks."""
    if session.device != "cpu":
        why = "onnxruntime offers CUDA"
    elif session.offers_cuda:
        why = "onnxruntime offers CUDA but could not start it"
    else:
        why = "onnxruntime offers no CUDA"
    return {
        "backend": backend_choice(config, Backend.ONNX, installed_backends()),
        "device": as_set(config, "device") or Choice(session.device, why),
        "precision": _precision_choice(config, files.weights[0].name),
        "max_length": as_set(config, "max_length")
        or Choice(str(max_length), "the model's own limit"),
    }


def _precision_choice(config: RerankConfig, file: str) -> Choice:
    if config.model.endswith(".onnx"):
        return Choice("its own", unread(config, "precision", "an ONNX file is taken as it is"))
    made = as_set(config, "precision")
    if made is not None:
        return made
    named = next((kind for kind, names in USUAL_NAMES.items() if file in names), "its own")
    if named not in precisions_here(config) and named == Precision.INT8:
        return Choice(
            named, f"{MANIFEST} says that {file} ranks as torch does, and the CPU is fast at it"
        )
    looked = " or else ".join(precisions_here(config))
    return Choice(named, f"{file} is what the model has of {looked}")


def pad(pairs: Sequence[TokenPair], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """Return the graph's inputs, each (pairs, longest), short rows filled on the right."""
    shape = len(pairs), max(pair.tokens for pair in pairs)
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    segments = np.zeros(shape, dtype=np.int64)
    for row, pair in enumerate(pairs):
        ids[row, : pair.tokens] = pair.ids
        mask[row, : pair.tokens] = 1
        if pair.segments is not None:
            segments[row, : pair.tokens] = pair.segments
    return dict(zip(INPUTS, (ids, mask, segments), strict=True))


def _load_tokenizer(files: ModelFiles) -> Any:  # noqa: ANN401  imported late
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(os.fspath(files.tokenizer))
    # The tokenizers library raises plain Exception.
    except Exception as exc:
        raise ModelLoadError(
            files.name, f"{files.tokenizer.name} cannot be read: {first_line(exc)}"
        ) from exc


def _digest(template: object) -> str:
    return hashlib.blake2b(repr(template).encode(), digest_size=4).hexdigest()


def _out_of_memory(exc: BaseException) -> bool:
    text = str(exc).lower()
    signs = ("bad_alloc", "allocate memory", "out of memory")
    return isinstance(exc, MemoryError) or any(sign in text for sign in signs)
