"""The built wheel, as a stranger installs it: typed, complete, and content with two extras."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

QUICKSTART = """
import sys

allowed, owners = {allowed!r}, {owners!r}


class OnlyWhatWasAskedFor:
    def find_spec(self, name, path=None, target=None):
        owner = owners.get(name.partition(".")[0])
        if owner is not None and owner not in allowed:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, OnlyWhatWasAskedFor())
from langchain_core.documents import Document
from rerank_plugins import MissingExtraError, Reranker
from rerank_plugins.langchain import RerankCompressor
import rerank_plugins

ranking = Reranker().rank("what do foxes eat?", ["Rain is wet.", "Foxes eat rodents and fruit."])
assert [d.index for d in ranking] == [1, 0], ranking
assert ranking.scorer == "embedded"
compressor = RerankCompressor(top_n=1)
documents = [Document(page_content=text, id=str(i)) for i, text in enumerate(["Rain", "Foxes"])]
assert [d.id for d in compressor.compress_documents(documents, "red foxes")] == ["1"]
assert Reranker().rank("¿qué comen los zorros?", ["a"]).scorer == "lexical"
assert "torch" not in sys.modules
try:
    import rerank_plugins.llama_index
except MissingExtraError as error:
    assert 'pip install "rerank-plugins[llama-index]"' in str(error)
else:
    raise AssertionError("llama_index was there")
print(rerank_plugins.__file__)
"""

USER_FILE = """
import asyncio

from rerank_plugins import RankedDocument, Ranking, RerankConfig, Reranker, Scorer
from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.testing import FakeScorer


def shout(text: str) -> str:
    return text.upper()


def best(reranker: Reranker) -> RankedDocument:
    ranking: Ranking = reranker.rank("q", ["a", "b"], top_n=1, score_threshold=0.1, min_results=1)
    return ranking[0]


async def scores(reranker: Reranker) -> list[float]:
    return await reranker.ascore([("q", "a")], timeout_s=1.0)


with Reranker("lexical", normalizer=shout, cache_entries=5, language_models={"zh": "x"}) as r:
    index: int = best(r).index
    values: list[float] = asyncio.run(scores(r))
own = Reranker(FakeScorer())
config: RerankConfig = own.config
compressor = RerankCompressor(model="lexical", top_n=None)
postprocessor = RerankPostprocessor(reranker=own, top_n=2)
"""

WRONG_FILE = """
from rerank_plugins import Reranker

Reranker("lexical", cache_entries="many")
Reranker("lexical", chache_entries=5)
Reranker().rank("q", ["a"], 3)
"""


def _closure(extras: set[str]) -> set[str]:
    """Distributions that this package needs with *extras*, by canonical name."""
    found: set[str] = set()
    todo = [("rerank-plugins", frozenset(extras))]
    while todo:
        name, wanted = todo.pop()
        if name in found and not wanted:
            continue
        found.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in requirements:
            text, _, marker = requirement.partition(";")
            extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
            if extra is None or extra.group(1) in wanted:
                match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", text)
                assert match is not None
                needed = _canonical(match.group(1))
                if needed not in found:
                    todo.append(
                        (needed, frozenset(filter(None, (match.group(2) or "").split(","))))
                    )
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel installed, and its dependencies borrowed from this one."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A folder named in a .pth file is searched, but its own .pth files are not read: the checkout
    # that this interpreter has installed stays out of sight.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@pytest.mark.slow
def test_the_quickstart_works_with_two_extras_and_no_torch(python: Path, tmp_path: Path) -> None:
    owners = {
        module: _canonical(names[0]) for module, names in metadata.packages_distributions().items()
    }
    allowed = _closure({"onnx", "langchain"})
    assert not allowed & {"torch", "transformers", "llama-index-core"}
    program = QUICKSTART.format(allowed=allowed, owners=owners)

    answer = subprocess.run(
        [python, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert answer.returncode == 0, answer.stderr
    assert Path(answer.stdout.strip()).is_relative_to(python.parents[1])


@pytest.mark.slow
def test_a_users_file_passes_strict_type_checking_against_the_wheel(
    python: Path, tmp_path: Path
) -> None:
    (tmp_path / "right.py").write_text(USER_FILE)
    (tmp_path / "wrong.py").write_text(WRONG_FILE)
    checker = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python]

    right = subprocess.run(
        [*checker, "right.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    wrong = subprocess.run(
        [*checker, "--output", "json", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert right.returncode == 0, right.stdout
    assert [json.loads(line)["line"] for line in wrong.stdout.splitlines()] == [4, 5, 6]


@pytest.mark.slow
def test_the_wheel_holds_the_model_the_card_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {info.filename: info.file_size for info in archive.infolist()}

    assert "rerank_plugins/py.typed" in names
    assert "rerank_plugins/models/embedded/README.md" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    weights = sum(
        size for name, size in names.items() if name.startswith("rerank_plugins/models/embedded/")
    )
    assert 5e6 < weights <= 25e6
    assert not [name for name in names if name.startswith(("tests", "training", "examples"))]
