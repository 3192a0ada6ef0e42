"""One export: find, trace, convert, check each file against torch, and write what was found."""

from __future__ import annotations

import importlib
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import InputError, MissingExtraError, ModelLoadError, first_line
from rerank_plugins.export import conversions, graph, quantizing
from rerank_plugins.export.drift import measure_drift
from rerank_plugins.export.folder import unfinished_folder
from rerank_plugins.export.formats import (
    DEFAULT_FORMATS,
    FP16,
    FP32,
    INT8,
    INT8_DYNAMIC,
    OPTIMIZED,
)
from rerank_plugins.export.record import PACKAGES, Exported, count_pairs, write_manifest
from rerank_plugins.models.encoding import pad
from rerank_plugins.models.files import find_model
from rerank_plugins.models.hub import SETTINGS, TOKENIZER
from rerank_plugins.models.manifest import EXACT, total_bytes
from rerank_plugins.models.settings import longest_pair
from rerank_plugins.models.weights import choose_torch
from rerank_plugins.models.windows import single_pairs
from rerank_plugins.options import Backend
from rerank_plugins.scorers.onnx.scorer import OnnxScorer
from rerank_plugins.scorers.runtime import import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rerank_plugins.export.drift import Drift
    from rerank_plugins.export.formats import Format
    from rerank_plugins.export.graph import Feeds
    from rerank_plugins.export.texts import CheckTexts, QueryGroup
    from rerank_plugins.models.encoding import TokenPair
    from rerank_plugins.models.files import ModelFiles

CHECKED_TOKENS = 512
"""Longest pair of calibration and check unless ``max_length`` is set: attention that is written out
takes memory with the square of it, and all of a batch is kept in calibration.
"""

BATCH_TOKENS = 4096
"""Tokens of one query's pairs that are scored at once, padding included."""

MAKERS: dict[Format, Callable[[Path, Path, Callable[[], Iterator[Feeds]]], None]] = {
    OPTIMIZED: lambda source, target, _: conversions.optimize(source, target),
    INT8: lambda source, target, pairs: quantizing.to_static_int8(source, target, pairs()),
    INT8_DYNAMIC: lambda source, target, _: conversions.to_dynamic_int8(source, target),
    FP16: lambda source, target, _: conversions.to_fp16(source, target),
}
"""What makes each file of the float32 graph, and of the pairs of calibration where it needs any."""


def export_model(
    config: RerankConfig,
    folder: Path,
    texts: CheckTexts,
    *,
    formats: Sequence[Format] = DEFAULT_FORMATS,
    force: bool = False,
    say: Callable[[str], None],
) -> list[Exported]:
    """Export the PyTorch model of *config* to *folder*; *say* is told of each step.

    A file that is no faithful copy is left out, and the manifest says why. Nothing in *folder*
    changes until all files are written and checked.

    Raises:
        InputError: the model is an ONNX file; or *folder* cannot be written to, is not empty and
            *force* is off, or holds weights or settings that no export wrote.
        MissingExtraError: a package of the extra ``export`` is not installed.
        ModelLoadError: the model is not there, is no cross-encoder, or cannot be traced; or its
            files could not be written.
    """
    if config.model.endswith(".onnx"):
        raise InputError(
            f"model: {config.model!r} is an ONNX file already; name a folder with PyTorch weights, "
            "or a model on the hub"
        )
    _require_packages()
    with unfinished_folder(folder, config.model, force=force) as unfinished:
        files = find_model(
            config.model,
            choose=partial(choose_torch, allow_pickle=config.allow_pickle),
            revision=config.revision,
            local_files_only=config.local_files_only,
            remote_code=config.trust_remote_code,
        )
        done = _Export(config, files, texts, unfinished, say).run(formats)
        write_manifest(unfinished, files, texts, done)
    return done


class _Export:
    """The steps of one export, in a folder of its own."""

    def __init__(
        self,
        config: RerankConfig,
        files: ModelFiles,
        texts: CheckTexts,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._files = files
        self._texts = texts
        self._folder = folder
        self._say = say
        self._fp32 = folder / FP32.file
        self._checked_tokens = min(CHECKED_TOKENS, longest_pair(files, None))

    def run(self, formats: Sequence[Format]) -> list[Exported]:
        """Write and check *formats*; float32 is always made, for the others are made of it."""
        self._copy_settings()
        self._say(f"loading {self._files.name} in float32")
        model = graph.load_reference(self._files, trust_remote_code=self._config.trust_remote_code)
        names = graph.input_names(model, self._files)
        self._say("tracing the graph")
        graph.write_graph(model, names, self._fp32, name=self._files.name)
        self._say(f"scoring {count_pairs(self._texts.check)} pairs with torch")
        reference = self._reference(model, names)
        # Several gigabytes for a large model, that the conversions can use.
        del model
        fp32 = self._check(FP32, reference)
        if fp32.left_out is not None:
            raise ModelLoadError(
                self._files.name,
                f"its ONNX graph does not give its logits ({fp32.left_out}); run its PyTorch "
                'weights instead: backend="torch"',
            )
        done = [fp32] if FP32 in formats else []
        for row in formats:
            if row is not FP32:
                self._say(f"making {row.file}")
                done.append(self._convert(row, names, reference))
        if FP32 not in formats:
            self._remove(FP32)
        if all(item.left_out for item in done):
            reasons = "; ".join(f"{item.format.file}: {item.left_out}" for item in done)
            raise ModelLoadError(self._files.name, f"no file is worth keeping: {reasons}")
        return done

    def _copy_settings(self) -> None:
        for name in (TOKENIZER, *SETTINGS):
            source = self._files.folder / name
            if source.is_file():
                shutil.copyfile(source, self._folder / name)

    def _convert(
        self, row: Format, names: Sequence[str], reference: Sequence[NDArray[np.float32]]
    ) -> Exported:
        try:
            MAKERS[row](self._fp32, self._folder / row.file, partial(self._calibration, names))
            return self._check(row, reference)
        except OSError:
            raise
        # The other files do without this one.
        except Exception as exc:  # noqa: BLE001  onnxruntime and its tools raise anything
            self._remove(row)
            reason = f"it cannot be made or run ({type(exc).__name__}: {first_line(exc)})"
            return Exported(row, None, 0, "", self._without_folder(reason))

    def _check(self, row: Format, reference: Sequence[NDArray[np.float32]]) -> Exported:
        """Score the check texts as a user would, and compare; a bad file is removed."""
        self._say(f"checking {row.file}")
        scorer = self._open(row)
        try:
            found = [scorer.forward(batch) for batch in _batches(scorer, self._texts.check)]
            checked_on = scorer.choices["device"].value
        finally:
            scorer.close()
        if checked_on == "cpu" and row.on_cpu:
            checked_on = f"cpu, {row.on_cpu}"
        logits = _by_query(found, self._texts.check)
        finite = all(np.isfinite(part).all() for part in logits)
        drift = measure_drift(reference, logits) if finite else None
        problem = _problem(row, drift)
        size = total_bytes(self._folder / row.file)
        if problem is not None:
            self._remove(row)
        return Exported(row, drift, size, checked_on, problem)

    def _reference(self, model: Any, names: Sequence[str]) -> list[NDArray[np.float32]]:  # noqa: ANN401
        scorer = self._open(FP32)
        try:
            padding = scorer.pad_id
            found = [
                graph.reference_logits(model, batch, names, pad_id=padding)
                for batch in _batches(scorer, self._texts.check)
            ]
        finally:
            scorer.close()
        return _by_query(found, self._texts.check)

    def _calibration(self, names: Sequence[str]) -> Iterator[Feeds]:
        scorer = self._open(FP32)
        try:
            for group in self._texts.calibration:
                for pair in single_pairs(scorer.encode(group.query, group.documents)):
                    batch = pad([pair], scorer.pad_id)
                    yield {name: batch[name] for name in names}
        finally:
            scorer.close()

    def _open(self, row: Format) -> OnnxScorer:
        config = RerankConfig(
            model=str(self._folder / row.file),
            backend=Backend.ONNX,
            device=row.check_device,
            max_length=self._config.max_length or self._checked_tokens,
            truncation=self._config.truncation,
            activation="logit",
        )
        try:
            return OnnxScorer.open(config)
        except ModelLoadError as exc:
            reason = self._without_folder(exc.reason)
            raise ModelLoadError(self._files.name, reason) from exc

    def _without_folder(self, reason: str) -> str:
        """Return a message that names no file by the folder that is gone when it is read."""
        return reason.replace(f"{self._folder}/", "")

    def _remove(self, row: Format) -> None:
        for path in self._folder.glob(f"{row.file}*"):
            path.unlink()


def _batches(scorer: OnnxScorer, groups: Sequence[QueryGroup]) -> Iterator[list[TokenPair]]:
    """Encode each query with its documents, in batches of up to `BATCH_TOKENS`."""
    for group in groups:
        batch: list[TokenPair] = []
        for pair in single_pairs(scorer.encode(group.query, group.documents)):
            longest = max(other.tokens for other in (pair, *batch))
            if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(pair)
        yield batch


def _by_query(
    batches: Sequence[NDArray[np.float32]], groups: Sequence[QueryGroup]
) -> list[NDArray[np.float32]]:
    ends = np.cumsum([len(group.documents) for group in groups])
    return np.split(np.concatenate(batches), ends[:-1])


def _problem(row: Format, drift: Drift | None) -> str | None:
    """Return why a file is no copy of the model worth keeping, or None."""
    if drift is None:
        return "it gives logits that are not finite numbers"
    if row.exact and drift.max > EXACT:
        return f"a logit differs from torch by {drift.max:.2g}, allowed is {EXACT:g}"
    return None


def _require_packages() -> None:
    # Its extra is chosen by whoever installs it: onnx or onnx-gpu.
    import_onnxruntime("rerank-plugins export")
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            raise MissingExtraError(
                package=package, extra="export", needed_for="rerank-plugins export"
            ) from None
