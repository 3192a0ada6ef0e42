"""Where an extra is missing, the error holds the pip command."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("metrics", "prometheus_client", "metrics"), ("tracing", "opentelemetry", "tracing")],
)
def test_a_missing_extra_is_named_with_the_pip_command(
    module: str, package: str, extra: str
) -> None:
    program = f"""
import sys
sys.modules[{package!r}] = None
try:
    import rerank_plugins.{module}
except ImportError as error:
    print(type(error).__name__, error)
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.startswith("MissingExtraError")
    assert f'pip install "rerank-plugins[{extra}]"' in answer.stdout


def test_neither_is_loaded_by_a_reranker() -> None:
    program = """
import sys
from rerank_plugins import Observer, Reranker
with Reranker("lexical", observers=[Observer()]) as reranker:
    reranker.rank("red fox", ["a fox"])
print(sorted({"prometheus_client", "opentelemetry", "pynvml"} & set(sys.modules)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "[]"
