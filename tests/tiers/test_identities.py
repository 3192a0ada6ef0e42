"""What the keys of a shared cache rest on: the same scorer says the same of itself elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file

from rerank_plugins import Reranker
from rerank_plugins.config import RerankConfig
from rerank_plugins.scorers import open_scorer
from tests.tiny_models import write_model
from tests.tiny_torch import write_torch_model

if TYPE_CHECKING:
    from pathlib import Path

ELSEWHERE = """
import json, sys
from rerank_plugins.config import RerankConfig
from rerank_plugins.scorers import open_scorer
print(json.dumps([open_scorer(RerankConfig(**each)).identity for each in json.load(sys.stdin)]))
"""


def identity(**settings: Any) -> str:
    scorer = open_scorer(RerankConfig(**settings))
    scorer.close()
    return scorer.identity


def elsewhere(*settings: dict[str, Any]) -> list[str]:
    """Return the identities that another process finds."""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE],
        input=json.dumps(settings),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found: list[str] = json.loads(answer.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_scorers_have_the_same_identity_in_another_process(tmp_path: Path) -> None:
    write_torch_model(tmp_path / "torch")
    write_model(tmp_path / "onnx")
    settings: list[dict[str, Any]] = [
        {"model": "lexical"},
        {"model": "embedded"},
        {"model": str(tmp_path / "onnx")},
        {"model": str(tmp_path / "torch"), "device": "cpu", "precision": "fp32"},
        {"model": str(tmp_path / "torch"), "device": "cpu", "precision": "bf16"},
        {"model": str(tmp_path / "torch"), "device": "cpu", "precision": "fp32", "max_length": 32},
    ]
    here = [identity(**each) for each in settings]

    assert elsewhere(*settings) == here
    assert len(set(here)) == len(here)


def test_other_weights_under_the_same_path_share_nothing(tmp_path: Path) -> None:
    pytest.importorskip("diskcache")
    settings: dict[str, Any] = {"device": "cpu", "precision": "fp32", "shared_cache_timeout_s": 30}
    folder = write_torch_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    found = []
    for gain in (1.0, 2.0, 1.0):
        changed = {**tensors, "classifier.weight": tensors["classifier.weight"] * gain}
        save_file(changed, weights, metadata={"format": "pt"})
        with Reranker(str(folder), shared_cache=str(tmp_path / "shared"), **settings) as reranker:
            found.append(reranker.rank("red fox", ["a red fox"])[0])

    assert [document.cached for document in found] == [False, False, True]
    assert found[0].logit != found[1].logit
    assert found[0].logit == found[2].logit
