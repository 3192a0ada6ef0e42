"""The exception tree."""

from __future__ import annotations

import copy
import pickle

import pytest

from rerank_plugins import errors
from rerank_plugins.errors import (
    MissingExtraError,
    ModelLoadError,
    QueueFullError,
    RerankError,
    ScoringError,
)

ALL = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, Exception)
]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_drawn_in_the_tree_and_caught_by_its_root(kind: type[Exception]) -> None:
    assert issubclass(kind, RerankError)
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    "error",
    [
        MissingExtraError(package="onnxruntime", extra="onnx", needed_for="this"),
        ModelLoadError("some/model", "no such folder"),
        ScoringError("failed", retryable=True),
        QueueFullError("full", retry_after_s=2.5),
    ],
)
def test_an_error_keeps_its_facts_across_processes(error: RerankError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))


def test_a_missing_extra_tells_the_next_command() -> None:
    error = MissingExtraError(package="onnxruntime", extra="onnx", needed_for="the model")

    assert 'pip install "rerank-plugins[onnx]"' in str(error)
    assert isinstance(error, ImportError)
