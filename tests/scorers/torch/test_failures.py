"""What is said of a checkpoint that is no cross-encoder, and of a pass that fails."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from rerank_plugins import Reranker
from rerank_plugins.errors import ConfigError, ModelLoadError, OutOfMemoryError, ScoringError
from tests.tiny_language_models import write_language_model
from tests.tiny_torch import USUAL_SIZES, PaddedForward, make_pairs, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rerank_plugins.scorers.torch.scorer import TorchScorer

WEIGHTS = "model.safetensors"
WORD_EMBEDDINGS = ("word_embeddings.weight", "tok_embeddings.weight")


def replace_model(folder: Path, kind: Any, model_type: str, **config: Any) -> None:
    """Put another kind of model beside the tokenizer of the one in *folder*."""
    for name in (WEIGHTS, "config.json"):
        (folder / name).unlink()
    settings = AutoConfig.for_model(model_type, vocab_size=200, **USUAL_SIZES | config)
    kind.from_config(settings).save_pretrained(folder)


def cut_short(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder: Path, **config: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), r"there are no PyTorch weights.*safetensors"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is half a download"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no weights"), f"{WEIGHTS} is no"),
        (cut_short, f"{WEIGHTS} is half a download"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: configure(folder, model_type="nothing-known"), "nothing-known"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: write_torch_model(folder, labels=3), r"\(1, 3\)"),
        (
            lambda folder: replace_model(folder, AutoModel, "bert"),
            "an embedding model",
        ),
        (
            lambda folder: replace_model(
                folder, AutoModelForCausalLM, "llama", num_key_value_heads=2
            ),
            'a causal language model .* name its family: family="yes-no"',
        ),
        (
            lambda folder: change(folder, lambda tensors: tensors.pop("classifier.weight")),
            "classifier.weight",
        ),
        (
            lambda folder: change(
                folder,
                lambda tensors: tensors.pop("bert.encoder.layer.1.intermediate.dense.weight"),
            ),
            r"no weights for .*layer\.1\.intermediate\.dense\.weight",
        ),
        (
            lambda folder: configure(folder, hidden_size=64),
            r"do not fit .* where \(.*64.*\) is wanted",
        ),
        (lambda folder: configure(folder, vocab_size=5), r"word_embeddings.* where \(5, "),
    ],
)
def test_a_spoiled_checkpoint_says_what_is_wrong(
    spoil: Callable[[Path], object],
    expected: str,
    tmp_path: Path,
    open_torch: Callable[..., TorchScorer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_torch_model(tmp_path)
    spoil(tmp_path)

    with pytest.raises(ModelLoadError, match=expected) as caught:
        open_torch()
    assert caught.value.model == str(tmp_path)
    assert "LOAD REPORT" not in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    with pytest.raises(ModelLoadError, match="no such file or folder"):
        open_torch(model=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match="there are no PyTorch weights"):
        open_torch(model=str(tmp_path / "empty"))


def test_pickled_weights_are_opened_only_when_allowed(
    tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_torch_model(tmp_path)
    pairs = make_pairs(20)
    expected = PaddedForward(tmp_path).logits(pairs)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()

    with pytest.raises(ModelLoadError, match="allow_pickle=True"):
        open_torch()
    scorer = open_torch(allow_pickle=True)
    found = scorer.forward([scorer.encode(query, [text])[0] for query, text in pairs])

    assert found == pytest.approx(expected, rel=0, abs=1e-4)


@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_weights_that_are_not_numbers_fail_the_request_or_the_opening(
    name: str, tmp_path: Path
) -> None:
    """A NaN is an error, never a rank."""
    write_torch_model(tmp_path, name)
    change(tmp_path, lambda tensors: tensors["classifier.weight"].fill_(torch.nan))

    with (
        Reranker(str(tmp_path), backend="torch", device="cpu", precision="fp32") as reranker,
        pytest.raises((ScoringError, ModelLoadError), match=r"(?i)nan|finite|not a number"),
    ):
        reranker.rank("the cat", ["a dog", "a tree"])


@pytest.mark.parametrize("name", ["bert", "modernbert mean", "deberta-v2"])
def test_a_pair_of_no_number_leaves_its_neighbours_alone(
    name: str, tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    """One broken row of the vocabulary, that of "##ing", and a batch in which one text has it."""
    write_torch_model(tmp_path, name)
    (words,) = (n for n in load_file(tmp_path / WEIGHTS) if n.endswith(WORD_EMBEDDINGS))
    expected = PaddedForward(tmp_path).logits([("the cat", "a dog"), ("the cat", "a tree on")])
    change(tmp_path, lambda tensors: tensors[words][-1].fill_(torch.nan))
    scorer = open_torch()

    found = scorer.forward(scorer.encode("the cat", ["a dog", "sating", "a tree on"]))

    assert [math.isnan(logit) for logit in found] == [False, True, False]
    assert found[[0, 2]] == pytest.approx(expected, rel=0, abs=1e-4)
    with Reranker(str(tmp_path), backend="torch", device="cpu", precision="fp32") as reranker:
        with pytest.raises(ScoringError, match=r"(?i)nan|finite"):
            reranker.rank("the cat", ["a dog", "sating", "a tree on"])
        assert len(reranker.rank("the cat", ["a dog", "a tree on"])) == 2


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_a_pass_out_of_memory_says_what_to_lower(
    name: str,
    failure: Exception,
    tmp_path: Path,
    open_torch: Callable[..., TorchScorer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_torch_model(tmp_path, name)
    scorer = open_torch()
    pairs = scorer.encode("the cat", ["a dog", "a tree on the mat"])
    longest = max(pair.tokens for pair in pairs)

    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(torch.nn.Module, "__call__", fail)

    advice = rf"2 pairs of up to {longest} tokens; lower batch_tokens or max_length"
    with pytest.raises(OutOfMemoryError, match=advice) as caught:
        scorer.forward(pairs)
    assert caught.value.__cause__ is failure


def test_a_batch_out_of_memory_is_scored_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the engine: what fits in smaller batches is ranked all the same."""
    write_torch_model(tmp_path)
    documents = [document for _, document in make_pairs(20)]
    settings = {"backend": "torch", "device": "cpu", "precision": "fp32", "normalizer": None}
    with Reranker(str(tmp_path), **settings) as reranker:
        expected = reranker.score([("the cat", document) for document in documents])
        reranker.clear_cache()
        call = torch.nn.Embedding.forward

        def small_only(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
            if ids.numel() > 150:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return call(self, ids)

        monkeypatch.setattr(torch.nn.Embedding, "forward", small_only)

        found = reranker.score([("the cat", document) for document in documents])

    assert found == pytest.approx(expected, rel=0, abs=1e-6)


def test_a_closed_scorer_says_so(tmp_path: Path, open_torch: Callable[..., TorchScorer]) -> None:
    write_torch_model(tmp_path)
    scorer = open_torch()
    pairs = scorer.encode("the cat", ["a dog"])
    scorer.close()

    with pytest.raises(ScoringError, match="was closed"):
        scorer.forward(pairs)


@pytest.mark.parametrize(
    ("row", "settings", "error", "expected"),
    [
        ({"yes": 1_000_000}, {}, ModelLoadError, "has no token of the ids .*1000000"),
        ({"yes": -1}, {}, ModelLoadError, "has no token of the ids"),
        ({"yes": "a long answer"}, {}, ModelLoadError, "is . tokens of its vocabulary"),
        ({}, {"max_length": 30}, ConfigError, "max_length 30 has no room for texts"),
        ({}, {"max_length": 600}, ConfigError, "takes at most 512 tokens"),
    ],
)
def test_a_language_model_that_cannot_be_asked_says_why(
    row: dict[str, object],
    settings: dict[str, int],
    error: type[Exception],
    expected: str,
    tmp_path: Path,
    open_torch: Callable[..., TorchScorer],
) -> None:
    write_language_model(tmp_path)
    family = tmp_path / "family.json"
    family.write_text(json.dumps({"base": "qwen3-reranker", **row}))

    with pytest.raises(error, match=expected):
        open_torch(family=str(family), **settings)


def test_a_language_model_with_code_of_its_own_is_refused_whatever_is_trusted(
    tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    write_language_model(tmp_path)
    configure(tmp_path, model_type="mine", auto_map={"AutoModelForCausalLM": "code.Model"})
    (tmp_path / "code.py").write_text("raise RuntimeError('it ran')")

    with pytest.raises(ModelLoadError, match=r"no language model of model_type 'mine', and code"):
        open_torch(family="qwen3-reranker", trust_remote_code=True)


def test_positions_that_turn_all_pairs_of_a_batch_are_out_of_reach(
    tmp_path: Path, open_torch: Callable[..., TorchScorer]
) -> None:
    """With longrope, one pair beyond the short positions would change every other's logit."""
    write_language_model(tmp_path, "llama")
    factors = [1.0] * 4, [4.0] * 4
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128}
    rope |= {"short_factor": factors[0], "long_factor": factors[1], "factor": 4.0}
    configure(tmp_path, rope_parameters=rope, rope_scaling=rope)

    with pytest.raises(ConfigError, match="takes at most 128 tokens"):
        open_torch(family="qwen3-reranker", max_length=129)
