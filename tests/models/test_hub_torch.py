"""PyTorch weights from a loopback hub: what is downloaded, and what is said where they are not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.loopback_hub import COMMIT, OLD_COMMIT, UNREACHABLE, ask, serve
from tests.tiny_models import write_checkpoint, write_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETTINGS = ["config.json", "tokenizer.json", "tokenizer_config.json"]
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
OWN_CLASS = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForSequenceClassification": "modeling_own.OwnModel",
}

HubOf = tuple[str, list[str], "Path"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubOf]:
    """A hub with a few models: its address, what was asked of it, and a cache folder."""
    root = tmp_path_factory.mktemp("hub")
    write_checkpoint(root / "acme/safe")
    for extra in ("pytorch_model.bin", "README.md", "tf_model.h5", "helper.py", "optimizer.pt"):
        (root / "acme/safe" / extra).write_bytes(b"never fetched")
    write_checkpoint(root / "acme/sharded", shards=3)
    write_checkpoint(root / "acme/torn", shards=3)
    (root / "acme/torn" / SHARDS[1]).unlink()
    write_checkpoint(root / "acme/pickled", pickled=True)
    write_checkpoint(root / "acme/unsettled")
    (root / "acme/unsettled/config.json").unlink()
    write_checkpoint(root / "acme/gated")
    write_checkpoint(root / "acme/coded", auto_map=OWN_CLASS)
    for name in ("configuration_own.py", "modeling_own.py", "helper.py"):
        (root / "acme/coded" / name).write_text("never run")
    write_model(root / "acme/both", onnx_names=("onnx/model.onnx",))
    write_checkpoint(root / "acme/both")
    write_model(root / "acme/graph")
    with serve(root) as (address, requests):
        yield address, requests, tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(hub: HubOf) -> dict[str, Any]:
    """What a machine with a network finds."""
    endpoint, _, home = hub
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "safe": ("acme/safe", {}),
        "tagged": ("acme/safe", {"revision": "v1"}),
        "sharded": ("acme/sharded", {}),
        "coded": ("acme/coded", {}),
        "torn": ("acme/torn", {}),
        "pickled": ("acme/pickled", {}),
        "unsettled": ("acme/unsettled", {}),
        "graph": ("acme/graph", {}),
        "gated": ("acme/gated", {}),
        "nobody": ("acme/nobody", {}),
        "no revision": ("acme/safe", {"revision": "v9"}),
        "bad token": ("acme/token", {}),
    }
    return dict(zip(calls, find(endpoint, home, *calls.values()), strict=True))


def find(endpoint: str, home: Path, *calls: tuple[str, dict[str, Any]], **env: str) -> list[Any]:
    """Find models with PyTorch weights; a call that names another kind finds that."""
    return ask(
        endpoint, home, *((name, {"kind": "torch"} | settings) for name, settings in calls), **env
    )


def test_only_weights_tokenizer_and_settings_are_downloaded(online: dict[str, Any]) -> None:
    assert online["safe"]["there"] == sorted([*SETTINGS, "model.safetensors"])
    assert online["safe"]["backend"] == "torch"
    assert online["sharded"]["there"] == sorted(
        [*SETTINGS, *SHARDS, "model.safetensors.index.json"]
    )
    assert online["sharded"]["weights"] == SHARDS
    assert not [name for name in online["coded"]["there"] if name.endswith(".py")]


def test_the_version_is_the_commit(online: dict[str, Any]) -> None:
    assert online["safe"]["version"] == COMMIT
    assert online["tagged"]["version"] == OLD_COMMIT


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("gated", ("the model is gated", "HF_TOKEN")),
        ("nobody", ("no such model on the hub", "check the spelling")),
        ("no revision", ("no revision 'v9' on the hub",)),
        ("bad token", ("the hub refused access, check HF_TOKEN",)),
        ("pickled", ("its weights are pickled", "save_pretrained(FOLDER)", "allow_pickle=True")),
        ("unsettled", ("there is no config.json",)),
        ("graph", ("there are no PyTorch weights", "but model.onnx")),
        (
            "torn",
            (
                f"half a download: {SHARDS[1]} of 3 files",
                f"hf download acme/torn --revision {COMMIT}",
            ),
        ),
    ],
)
def test_each_failure_has_its_own_message(
    case: str, expected: tuple[str, ...], online: dict[str, Any]
) -> None:
    error = online[case]["error"]

    assert error.startswith("ModelLoadError: cannot load 'acme/")
    for part in expected:
        assert part in error


def test_a_pickle_is_fetched_only_where_it_is_allowed(hub: HubOf, online: dict[str, Any]) -> None:
    endpoint, requests, home = hub
    assert not [line for line in requests if "acme/pickled/resolve" in line]

    (found,) = find(endpoint, home, ("acme/pickled", {"allow_pickle": True}))

    assert found["weights"] == ["pytorch_model.bin"]


def test_code_is_fetched_only_where_it_is_trusted(
    hub: HubOf, online: dict[str, Any], tmp_path: Path
) -> None:
    endpoint, requests, home = hub
    shutil.copytree(home / "hub", tmp_path / "hub", symlinks=True)
    assert not [line for line in requests if ".py" in line]

    (cached,) = find(
        endpoint, tmp_path, ("acme/coded", {"remote_code": True, "local_files_only": True})
    )
    (trusted,) = find(endpoint, tmp_path, ("acme/coded", {"remote_code": True}))

    assert "its code, configuration_own.py, is missing" in cached["error"]
    assert cached["error"].endswith(f"hf download acme/coded --revision {COMMIT}")
    assert [name for name in trusted["there"] if name.endswith(".py")] == [
        "configuration_own.py",
        "helper.py",
        "modeling_own.py",
    ]


def test_a_cached_model_needs_no_hub(hub: HubOf, online: dict[str, Any]) -> None:
    """local_files_only asks the hub nothing, though it is there."""
    endpoint, requests, home = hub
    before = len(requests)

    found, pinned, sharded, missing = find(
        endpoint,
        home,
        ("acme/safe", {"local_files_only": True}),
        ("acme/safe", {"local_files_only": True, "revision": "v1"}),
        ("acme/sharded", {"local_files_only": True}),
        ("acme/absent", {"local_files_only": True}),
    )

    assert len(requests) == before
    assert (found["version"], pinned["version"]) == (COMMIT, OLD_COMMIT)
    assert sharded["weights"] == SHARDS
    assert missing["error"].endswith("hf download acme/absent")


def test_without_a_network_the_cache_is_used(hub: HubOf, online: dict[str, Any]) -> None:
    endpoint, _, home = hub

    (unreachable,) = find(UNREACHABLE, home, ("acme/sharded", {}))
    offline, missing = find(
        endpoint, home, ("acme/safe", {}), ("acme/absent", {}), HF_HUB_OFFLINE="1"
    )

    assert unreachable["weights"] == SHARDS
    assert offline["version"] == COMMIT
    assert "HF_HUB_OFFLINE is set, and the cache does not hold it" in missing["error"]


def test_a_second_opening_downloads_nothing_again(hub: HubOf, online: dict[str, Any]) -> None:
    endpoint, requests, home = hub
    before = len(requests)

    find(endpoint, home, ("acme/sharded", {}))

    assert not [line for line in requests[before:] if line.startswith("GET /acme")]


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (SHARDS[2:], f"half a download: {SHARDS[2]} of 3 files"),
        ([*SHARDS, "model.safetensors.index.json"], "the cache holds no weights of it"),
        (["model.safetensors.index.json"], "half a download: model.safetensors.index.json is"),
    ],
)
def test_a_download_that_broke_off_says_what_is_missing(
    gone: list[str], said: str, hub: HubOf, online: dict[str, Any], tmp_path: Path
) -> None:
    home = hub[2]
    shutil.copytree(home / "hub", tmp_path / "hub", symlinks=True)
    (snapshots,) = (tmp_path / "hub").glob("models--acme--sharded/snapshots")
    for name in gone:
        (snapshots / COMMIT / name).unlink()

    (offline,) = find(UNREACHABLE, tmp_path, ("acme/sharded", {}))
    (resumed,) = find(hub[0], tmp_path, ("acme/sharded", {}))

    assert said in offline["error"]
    assert "hf download acme/sharded" in offline["error"]
    assert resumed["weights"] == SHARDS


def test_a_backend_is_picked_in_one_listing_of_the_hub(hub: HubOf, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    endpoint, requests, _ = hub
    before = len(requests)

    both, graph = ask(
        endpoint, tmp_path, ("acme/both", {"kind": "auto"}), ("acme/graph", {"kind": "auto"})
    )

    assert both["weights"] == ["model.safetensors"]
    assert not [name for name in both["there"] if name.endswith(".onnx")]
    assert graph["weights"] == ["model.onnx"]
    assert len([line for line in requests[before:] if "/api/models/acme" in line]) == 2
