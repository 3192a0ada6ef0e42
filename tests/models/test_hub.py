"""Downloads run against a loopback server that speaks the hub's protocol, in a process apart.

The hub library reads HF_ENDPOINT and HF_HOME when it is imported, so each process is one setting.
"""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models import hub as hub_module
from rerank_plugins.models.files import find_model
from tests.loopback_hub import COMMIT, OLD_COMMIT, UNREACHABLE, ask, serve
from tests.tiny_models import write_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str], Path]]:
    """A hub with a few models: its address, what was asked of it, and a cache folder."""
    root = tmp_path_factory.mktemp("hub")
    write_model(root / "acme/ranker", external=True)
    for extra in ("pytorch_model.bin", "README.md", "model.safetensors"):
        (root / "acme/ranker" / extra).write_bytes(b"never fetched")
    write_model(root / "acme/nested", onnx_names=("onnx/model.onnx", "onnx/model_fp16.onnx"))
    write_model(root / "acme/gated")
    write_model(root / "acme/torch")
    (root / "acme/torch/model.onnx").rename(root / "acme/torch/model.safetensors")
    write_model(root / "acme/bare")
    (root / "acme/bare/tokenizer.json").unlink()
    with serve(root) as (address, requests):
        yield address, requests, tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(hub: tuple[str, list[str], Path]) -> dict[str, Any]:
    """What a machine with a network finds."""
    endpoint, _, home = hub
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "ranker": ("acme/ranker", {}),
        "nested": ("acme/nested", {"precision": "fp16"}),
        "tagged": ("acme/nested", {"revision": "v1"}),
        "gated": ("acme/gated", {}),
        "nobody": ("acme/nobody", {}),
        "no revision": ("acme/ranker", {"revision": "v9"}),
        "torch": ("acme/torch", {}),
        "no tokenizer": ("acme/bare", {}),
        "bad token": ("acme/token", {}),
        "not an id": ("acme/--bad--", {}),
    }
    return dict(zip(calls, ask(endpoint, home, *calls.values()), strict=True))


def test_only_what_is_needed_is_downloaded(online: dict[str, Any]) -> None:
    assert online["ranker"]["there"] == [
        "config.json",
        "model.onnx",
        "model.onnx_data",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert "onnx/model_fp16.onnx" in online["nested"]["there"]
    assert "onnx/model.onnx" not in online["nested"]["there"]


def test_the_version_is_the_commit(online: dict[str, Any]) -> None:
    assert online["ranker"]["version"] == COMMIT
    assert online["tagged"]["version"] == OLD_COMMIT
    assert f"acme/ranker@{COMMIT} model.onnx" in online["ranker"]["identity"]


def test_a_downloaded_model_scores(online: dict[str, Any], tmp_path: Path) -> None:
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.scorers.onnx.scorer import OnnxScorer

    scorer = OnnxScorer.open(RerankConfig(model=str(write_model(tmp_path))))

    expected = scorer.forward(scorer.encode("cat", ["dog", "tree"])).tolist()
    assert online["ranker"]["logits"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("gated", ("the model is gated", "HF_TOKEN")),
        ("nobody", ("no such model on the hub", "check the spelling")),
        ("no revision", ("no revision 'v9' on the hub",)),
        ("torch", ("PyTorch weights but no ONNX file", "rerank-plugins export MODEL")),
        ("no tokenizer", ("there is no tokenizer.json",)),
        ("bad token", ("the hub refused access, check HF_TOKEN",)),
        ("not an id", ("no such local folder, and it is not a hub id",)),
    ],
)
def test_each_failure_has_its_own_message(
    case: str, expected: tuple[str, ...], online: dict[str, Any]
) -> None:
    error = online[case]["error"]

    assert error.startswith("ModelLoadError: cannot load 'acme/")
    for part in expected:
        assert part in error


def test_a_cached_model_needs_no_hub(
    hub: tuple[str, list[str], Path], online: dict[str, Any]
) -> None:
    """local_files_only asks the hub nothing, though it is there."""
    endpoint, requests, home = hub
    before = len(requests)

    found, pinned, missing, bad, other = ask(
        endpoint,
        home,
        ("acme/ranker", {"local_files_only": True}),
        ("acme/nested", {"local_files_only": True, "revision": "v1"}),
        ("acme/absent", {"local_files_only": True}),
        ("acme/--bad--", {"local_files_only": True}),
        ("acme/nested", {"local_files_only": True, "revision": "v7"}),
    )

    assert len(requests) == before
    assert found["version"] == COMMIT
    assert found["logits"] == online["ranker"]["logits"]
    assert pinned["version"] == OLD_COMMIT
    assert "only local files were asked for, and the cache does not hold it" in missing["error"]
    assert missing["error"].endswith("hf download acme/absent")
    assert other["error"].endswith("hf download acme/nested --revision v7")
    assert "not a hub id" in bad["error"]


def test_a_download_that_broke_off_says_how_to_finish_it(
    hub: tuple[str, list[str], Path], online: dict[str, Any], tmp_path: Path
) -> None:
    """The tokenizer comes first, and may be all that came."""
    endpoint, _, home = hub
    shutil.copytree(home / "hub", tmp_path / "hub", symlinks=True)
    (snapshots,) = (tmp_path / "hub").glob("models--acme--ranker/snapshots")
    for path in (snapshots / COMMIT).iterdir():
        if path.name != "tokenizer.json":
            path.unlink()

    alone, offline = (
        ask(endpoint, tmp_path, ("acme/ranker", {"local_files_only": True})),
        ask(UNREACHABLE, tmp_path, ("acme/ranker", {"revision": COMMIT})),
    )

    assert "only local files were asked for, and the cache holds no weights" in alone[0]["error"]
    assert alone[0]["error"].endswith("hf download acme/ranker")
    assert offline[0]["error"].endswith(f"hf download acme/ranker --revision {COMMIT}")


def test_a_second_opening_downloads_nothing_again(
    hub: tuple[str, list[str], Path], online: dict[str, Any]
) -> None:
    endpoint, requests, home = hub
    before = len(requests)

    ask(endpoint, home, ("acme/nested", {"precision": "fp16"}))

    asked = requests[before:]
    assert not [line for line in asked if line.startswith("GET /acme")]
    assert len(asked) <= 3


def test_offline_mode_uses_the_cache_and_says_how_to_fill_it(
    hub: tuple[str, list[str], Path], online: dict[str, Any]
) -> None:
    endpoint, _, home = hub

    found, missing = ask(
        endpoint, home, ("acme/ranker", {}), ("acme/absent", {}), HF_HUB_OFFLINE="1"
    )

    assert found["version"] == COMMIT
    assert "HF_HUB_OFFLINE is set, and the cache does not hold it" in missing["error"]


def test_an_unreachable_hub_leaves_the_cache(
    hub: tuple[str, list[str], Path], online: dict[str, Any]
) -> None:
    home = hub[2]

    found, missing, other = ask(
        UNREACHABLE,
        home,
        ("acme/nested", {"precision": "fp16"}),
        ("acme/absent", {}),
        ("acme/nested", {"revision": "v7"}),
    )

    assert found["version"] == COMMIT
    assert "the hub could not be reached (Connect" in missing["error"]
    assert "hf download acme/absent" in missing["error"]
    assert "the cache does not hold it at revision 'v7'" in other["error"]


def test_a_full_disk_is_not_taken_for_a_missing_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(hub_module, "_download", full)

    with pytest.raises(ModelLoadError, match=r"cannot be written to \(No space.*HF_HOME") as raised:
        find_model("acme/never-cached", choose=lambda _, __: ("model.onnx",))

    assert "reached" not in str(raised.value)


def test_a_hub_in_trouble_is_an_unreachable_hub(hub: tuple[str, list[str], Path]) -> None:
    endpoint, _, home = hub

    (answer,) = ask(endpoint, home, ("acme/broken", {}))

    assert "the hub could not be reached (HfHubHTTPError" in answer["error"]
