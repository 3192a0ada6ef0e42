"""Arrows point down, nobody imports the root, importing is free."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rerank_plugins

# A module may import modules of the lines above its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("results", "events", "options", "breaker", "cache_address", "server_addresses"),
    ("setting_checks",),
    ("settings",),
    ("config",),
    ("protocols",),
    ("text", "models"),
    ("observing", "stages"),
    ("ranking", "candidates", "batching", "jobs", "reporting"),
    ("cache",),
    ("requests",),
    ("cleaning", "finishing", "waiting", "watching", "room", "home"),
    ("scoring",),
    ("replica",),
    ("queueing",),
    ("dispatcher",),
    ("scorers", "opening", "tiers"),
    ("submission",),
    ("engine",),
    ("registry", "screening"),
    ("routing",),
    ("attempts", "given_order"),
    ("serving",),
    ("reranker",),
    ("doors",),
    ("langchain", "llama_index", "metrics", "gpu_readings", "tracing"),
    ("evaluation", "export", "testing"),
    ("documents",),
    ("batch", "playground", "service"),
    ("distributed",),
    ("cli",),
)

PACKAGE = Path(rerank_plugins.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "torch",
    "transformers",
    "onnxruntime",
    "langchain_core",
    "llama_index",
    "fastapi",
    "tokenizers",
    "huggingface_hub",
    "pydantic",
    "numpy",
}


def layer_of(module: str) -> int:
    """Return the line on which *module*, or the folder it is in, stands."""
    root = module.split(".", maxsplit=1)[0]
    for line, names in enumerate(LAYERS):
        if root in names:
            return line
    raise AssertionError(f"{module} has no place in the drawing")


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _imports(path: Path) -> set[str]:
    """Modules of the package that *path* imports, anywhere in it, for types or for real."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.split(".")[0] == "rerank_plugins"}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_arrows_point_down_and_nobody_imports_the_root(path: Path) -> None:
    name = _name(path)
    imported = _imports(path)

    if name:
        assert "rerank_plugins" not in imported
        for target in imported:
            below = target.removeprefix("rerank_plugins.")
            same = layer_of(below) == layer_of(name)
            assert same or layer_of(below) < layer_of(name), f"{name} imports {below}"


def test_no_cycle_hides_inside_a_layer() -> None:
    graph = {_name(path): _imports(path) for path in MODULES if _name(path)}
    known = set(graph)
    edges = {
        name: {t for target in targets if (t := target.removeprefix("rerank_plugins.")) in known}
        for name, targets in graph.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for target in edges[name] - {name}:
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_every_module_has_its_place_in_the_drawing() -> None:
    for path in MODULES:
        if _name(path):
            layer_of(_name(path))
    existing = {_name(path).split(".")[0] for path in MODULES}
    assert {name for layer in LAYERS for name in layer} <= existing


def test_the_public_surface_is_what_all_says() -> None:
    assert sorted(rerank_plugins.__all__) == rerank_plugins.__all__
    assert set(rerank_plugins.__all__) == set(rerank_plugins._HOME_OF)
    for name in rerank_plugins.__all__:
        assert getattr(rerank_plugins, name).__name__ == name
    assert set(dir(rerank_plugins)) == {*rerank_plugins.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Rerankr'"):
        rerank_plugins.Rerankr  # noqa: B018  the access is the test


def test_importing_the_package_loads_nothing_heavy_and_changes_nothing() -> None:
    program = """
import json, logging, os, sys, warnings
before = (list(logging.root.handlers), list(warnings.filters), dict(os.environ))
import rerank_plugins
rerank_plugins.RerankError, rerank_plugins.Ranking
after = (list(logging.root.handlers), list(warnings.filters), dict(os.environ))
print(json.dumps({"modules": sorted(sys.modules), "unchanged": before == after}))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    found = json.loads(answer.stdout)
    assert found["unchanged"]
    assert not HEAVY & {name.split(".")[0] for name in found["modules"]}


def test_opening_a_reranker_loads_no_framework() -> None:
    program = """
import json, sys
from rerank_plugins import Reranker
from rerank_plugins.testing import FakeScorer
with Reranker(FakeScorer()) as reranker:
    reranker.rank("a", ["a"])
print(json.dumps(sorted(sys.modules)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    roots = {name.split(".")[0] for name in json.loads(answer.stdout)}
    assert not roots & (HEAVY - {"pydantic", "numpy"})


@pytest.mark.parametrize("door", ["langchain", "llama_index"])
def test_a_door_loads_its_own_framework_only(door: str) -> None:
    other = {"langchain": "llama_index", "llama_index": "langchain_core"}[door]
    program = f"import sys, rerank_plugins.{door}; print({other!r} in sys.modules)"

    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "False"


def test_only_one_module_reads_the_environment() -> None:
    readers = [
        _name(path)
        for path in MODULES
        if "environ" in path.read_text(encoding="utf-8")
        or "getenv" in path.read_text(encoding="utf-8")
    ]

    assert readers == ["config"]
