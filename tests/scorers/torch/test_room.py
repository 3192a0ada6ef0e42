"""How much is free, and what a model does where not everything fits."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models.settings import CODE_CLASS
from rerank_plugins.options import Precision
from rerank_plugins.scorers.torch import preparing, room
from rerank_plugins.scorers.torch.hardware import choose_precision
from rerank_plugins.scorers.torch.opening import BATCH_TOKENS
from tests.scorers.torch.test_memory import files_of
from tests.tiny_language_models import write_language_model
from tests.tiny_torch import MAX_TOKENS, write_torch_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rerank_plugins.scorers.torch.memory import MemoryEstimate

CPU = torch.device("cpu")


def write_group(folder: Path, *, most: str, taken: int, cached: int, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\n")


@pytest.mark.parametrize(
    ("version", "root", "own"), [(2, "", "0::/a\n"), (1, "memory", "4:memory:/a\n")]
)
def test_files_that_were_read_of_late_can_be_given_up_too(
    version: int, root: str, own: str, tmp_path: Path
) -> None:
    folder = tmp_path / "groups" / root / "a"
    write_group(folder, most="1000", taken=900, cached=50, version=version)
    prefix = "total_" if version == 1 else ""
    with (folder / "memory.stat").open("a") as stat:
        stat.write(f"{prefix}active_file 600\n")

    assert left(tmp_path, own) == 750


def left(tmp_path: Path, own: str) -> int | None:
    (tmp_path / "own").write_text(own)
    return room._group_bytes(tmp_path / "own", tmp_path / "groups")


def test_a_container_has_what_its_limit_leaves_and_files_in_memory_do_not_count(
    tmp_path: Path,
) -> None:
    write_group(tmp_path / "groups" / "a" / "b", most="1000", taken=700, cached=200)

    assert left(tmp_path, "0::/a/b\n") == 500


def test_the_limit_of_a_group_above_holds_too(tmp_path: Path) -> None:
    write_group(tmp_path / "groups" / "a" / "b", most="max", taken=700, cached=0)
    write_group(tmp_path / "groups" / "a", most="800", taken=700, cached=0)

    assert left(tmp_path, "0::/a/b\n") == 100


def test_inside_a_container_its_own_group_is_the_root(tmp_path: Path) -> None:
    write_group(tmp_path / "groups", most="900", taken=100, cached=0)

    assert left(tmp_path, "0::/docker/abc\n") == 800


def test_groups_of_version_1_are_read_by_their_own_names(tmp_path: Path) -> None:
    folder = tmp_path / "groups" / "memory" / "x"
    write_group(folder, most="1000", taken=400, cached=100, version=1)

    assert left(tmp_path, "5:cpu:/y\n4:memory:/x\n") == 700


def test_without_limits_nothing_is_said(tmp_path: Path) -> None:
    write_group(tmp_path / "groups", most="max", taken=1, cached=0)

    assert left(tmp_path, "0::/\n") is None
    assert room._group_bytes(tmp_path / "missing", tmp_path) is None


@pytest.mark.skipif(not room.MEMINFO.exists(), reason="reads what Linux says")
def test_the_smaller_of_machine_and_container_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 3 kB\n")
    monkeypatch.setattr(room, "MEMINFO", meminfo)

    found = []
    for left_in_group in (None, 5000, 100):
        monkeypatch.setattr(room, "_group_bytes", lambda *_, left=left_in_group: left)
        found.append(room.free_bytes(CPU))

    assert found == [3072, 3072, 100]


@pytest.fixture
def need(tmp_path: Path) -> Callable[[int], MemoryEstimate]:
    """What the model in tmp_path is said to take."""
    write_torch_model(tmp_path, "bert")
    precision = choose_precision(Precision.FP32, CPU, None)
    return room.needs(files_of(tmp_path), precision, CPU, MAX_TOKENS)


def see(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: free)


def test_with_enough_memory_or_none_known_the_budget_is_the_default(
    need: Callable[[int], MemoryEstimate],
    open_torch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for free in (need(BATCH_TOKENS["cpu"]).total, None):
        see(monkeypatch, free)
        assert open_torch().batch_tokens == BATCH_TOKENS["cpu"]


def test_where_less_is_free_batches_are_smaller_and_the_log_says_so(
    need: Callable[[int], MemoryEstimate],
    open_torch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    see(monkeypatch, need(600).total)

    scorer = open_torch()

    assert scorer.batch_tokens == BATCH_TOKENS["cpu"] // 2
    assert f"batches have 512 tokens instead of {BATCH_TOKENS['cpu']}" in caplog.text


def test_no_batch_is_smaller_than_the_longest_pair(
    tmp_path: Path, open_torch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_torch_model(tmp_path, "bert")
    precision = choose_precision(Precision.FP32, CPU, None)
    see(monkeypatch, room.needs(files_of(tmp_path), precision, CPU, 50)(50).total)

    assert open_torch(max_length=50).batch_tokens == 50


def test_beside_a_shared_prefix_a_batch_may_be_smaller_than_the_longest_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(write_language_model(tmp_path))
    precision = choose_precision(Precision.FP32, CPU, None)
    told = room.needs(files, precision, CPU, 512)

    def found(asked: int | None = None) -> int:
        return room.batch_that_fits(files, precision, CPU, longest=512, default=2048, asked=asked)

    see(monkeypatch, told(64).total)
    assert found() == 64
    with pytest.raises(ModelLoadError, match="activations of 577 tokens"):
        found(asked=65)
    see(monkeypatch, told(64).total - 1)
    with pytest.raises(ModelLoadError, match="activations of 576 tokens"):
        found()
    assert found(asked=1) == 1


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    need: Callable[[int], MemoryEstimate],
    open_torch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, need(MAX_TOKENS).total - 1)
    monkeypatch.setattr(preparing, "load_model", lambda *_, **__: pytest.fail("it was read"))

    with pytest.raises(ModelLoadError) as refused:
        open_torch()

    text = str(refused.value)
    assert "GB on cpu in fp32: weights 0.0 GB, activations of 64 tokens 0.0 GB; 0.2 GB are" in text
    assert 'Try precision="bf16"' in text
    assert 'precision="int4"' in text
    assert "a smaller max_length, another device" in text


def test_a_budget_that_was_set_and_does_not_fit_is_refused_not_lowered(
    need: Callable[[int], MemoryEstimate],
    open_torch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, need(999).total)
    open_torch(batch_tokens=999)

    with pytest.raises(ModelLoadError, match=r"activations of 1000 tokens .* a smaller batch_tok"):
        open_torch(batch_tokens=1000)


def test_what_would_fit_no_better_is_not_advised(
    need: Callable[[int], MemoryEstimate],
    open_torch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, 1)

    with pytest.raises(ModelLoadError, match=r"Try another device, or a smaller model$"):
        open_torch()


def change_config(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let *change* act on what the header says of the first tensor."""
    path = folder / "model.safetensors"
    saved = path.read_bytes()
    end = 8 + int.from_bytes(saved[:8], "little")
    header = json.loads(saved[8:end])
    change(next(entry for name, entry in header.items() if name != "__metadata__"))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + saved[end:])


@pytest.mark.parametrize("free", [10**12, None])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: change_header(folder, lambda entry: entry.pop("dtype")),
        lambda folder: change_header(folder, lambda entry: entry.update(shape=["x"])),
        lambda folder: change_header(folder, lambda entry: entry.update(shape=None)),
        lambda folder: change_config(folder, hidden_size=10**400),
        lambda folder: change_config(folder, model_type=["bert"]),
    ],
    ids=["no dtype", "shape of text", "no shape", "huge size", "list of types"],
)
def test_what_no_model_holds_is_an_error_of_loading_whatever_is_free(
    spoil: Callable[[Path], object],
    free: int | None,
    tmp_path: Path,
    open_torch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_torch_model(tmp_path, "bert")
    spoil(tmp_path)
    see(monkeypatch, free)

    with pytest.raises(ModelLoadError):
        open_torch()


def weights_of(files: Any, precision: Precision, **how: bool) -> int:
    choice = choose_precision(precision, CPU, None)
    return room.needs(files, choice, CPU, MAX_TOKENS, **how)(MAX_TOKENS).weights


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_weights_that_are_read_whole_count_beside_the_rounded_ones(
    precision: Precision, tmp_path: Path
) -> None:
    write_torch_model(tmp_path, "bert")
    files = files_of(tmp_path)
    own_code = replace(files, config=dict(files.config) | {"auto_map": {CODE_CLASS: "code.Model"}})
    arithmetic = choose_precision(precision, CPU, None).arithmetic
    usual, whole = weights_of(files, precision), weights_of(files, arithmetic)

    assert weights_of(own_code, precision) == usual
    assert weights_of(own_code, precision, trust_remote_code=True) == usual + whole
    assert weights_of(own_code, arithmetic, trust_remote_code=True) == whole

    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    pickled = replace(files, weights=(tmp_path / "pytorch_model.bin",))
    assert weights_of(pickled, precision) > weights_of(pickled, arithmetic)
