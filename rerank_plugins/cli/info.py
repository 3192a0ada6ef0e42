"""``rerank-plugins info``: the machine, the packages, and how a model would run here, and why."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final, Literal

from rerank_plugins.cli.choices import settle
from rerank_plugins.cli.hardware import (
    cpu_name,
    onnxruntime_providers,
    torch_devices,
    usable_cores,
)
from rerank_plugins.cli.memory import memory_of, memory_rows
from rerank_plugins.cli.output import print_json, print_line
from rerank_plugins.cli.settings import add_settings, chosen_config
from rerank_plugins.cli.table import aligned, one_line
from rerank_plugins.errors import RerankError
from rerank_plugins.scorers.processor import cpu_features, read_cpuinfo

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from rerank_plugins.cli.memory import Memory
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.scorers.selection import Choice

_CORE: Final = ("numpy", "pydantic", "tokenizers", "huggingface-hub")
_OPTIONAL: Final = (
    (("onnxruntime", "onnxruntime-gpu"), "onnx"),
    (("torch",), "torch"),
    (("transformers",), "torch"),
    (("safetensors",), "torch"),
    (("onnx",), "export"),
    (("onnxscript",), "export"),
    (("langchain-core",), "langchain"),
    (("llama-index-core",), "llama-index"),
    (("prometheus-client",), "metrics"),
    (("nvidia-ml-py",), "metrics"),
    (("opentelemetry-api",), "tracing"),
    (("diskcache",), "disk-cache"),
    (("redis",), "redis"),
    (("bm25s",), "eval"),
    (("ir-measures",), "eval"),
)
"""Packages, any of which will do, and the extra that installs the first."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A scorer as it was opened, or why it was not."""

    scorer: str | None = None
    identity: str | None = None
    activation: str | None = None
    languages: list[str] | Literal["any"] | None = None
    batch_tokens: int | None = None
    problem: str | None = None


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "info",
        help="show the machine, the packages, and how a model would run here",
        description="Show the machine, the installed packages, and how a model would run here. "
        "Nothing is downloaded.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a model; that of the settings")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser, positional_model=True)


def run(args: argparse.Namespace) -> int:
    """Look, and print what was found; a model that cannot be opened is a finding too."""
    config = chosen_config(args)
    opened, found = _open(config)
    choices = settle(config, scorer=opened.scorer, choices=found)
    memory = memory_of(config, choices["backend"].value, opened.batch_tokens)
    if args.json:
        print_json(_as_json(config, choices, opened, memory))
    else:
        _print_report(config, choices, opened, memory)
    return 0


def _open(config: RerankConfig) -> tuple[Opened, Mapping[str, Choice]]:
    """Open the scorer, from local files alone, and close it again.

    Its ``choices`` say what settings came to; a scorer may leave them out.
    """
    from rerank_plugins.scorers import open_scorer

    try:
        scorer = open_scorer(config.model_copy(update={"local_files_only": True}))
    except RerankError as exc:
        return Opened(problem=one_line(str(exc))), {}
    try:
        opened = Opened(
            scorer=scorer.name,
            identity=scorer.identity,
            activation=scorer.activation,
            languages="any" if scorer.languages is None else sorted(scorer.languages),
            batch_tokens=config.batch_tokens or scorer.batch_tokens,
        )
        return opened, getattr(scorer, "choices", {})
    finally:
        scorer.close()


def _packages() -> dict[str, str | None]:
    """Return the version of each package, or None where it is not installed."""
    found = {name: _version(name) for name in ("rerank-plugins", *_CORE)}
    for names, _ in _OPTIONAL:
        there = next((name for name in names if _version(name) is not None), names[0])
        found[there] = _version(there)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _as_json(
    config: RerankConfig, choices: dict[str, Choice], opened: Opened, memory: Memory | None
) -> dict[str, object]:
    cpuinfo = read_cpuinfo()
    return {
        "machine": {
            "system": platform.platform(),
            "cpu": cpu_name(cpuinfo),
            "cpu_features": cpu_features(cpuinfo),
            "cores": usable_cores(),
            "onnxruntime_providers": onnxruntime_providers(),
            "torch_devices": torch_devices(),
        },
        "packages": {"python": platform.python_version(), **_packages()},
        "model": {
            "name": config.model,
            **{name: {"value": c.value, "why": c.why} for name, c in choices.items()},
            **{name: getattr(opened, name) for name in Opened.__slots__},
            "memory": memory,
        },
    }


def _print_report(
    config: RerankConfig, choices: dict[str, Choice], opened: Opened, memory: Memory | None
) -> None:
    cpuinfo = read_cpuinfo()
    extra_of = {name: extra for names, extra in _OPTIONAL for name in names}
    packages = {
        name: found or f'not installed; pip install "rerank-plugins[{extra_of[name]}]"'
        for name, found in _packages().items()
        if found or name in extra_of
    }
    _print_section(
        "machine",
        {
            "system": platform.platform(),
            "cpu": cpu_name(cpuinfo),
            "cpu features": " ".join(cpu_features(cpuinfo)) or "none known",
            "cores": str(usable_cores()),
            "onnxruntime": ", ".join(onnxruntime_providers() or ["not installed"]),
            "torch": ", ".join(torch_devices() or ["not installed"]),
        },
    )
    _print_section("packages", {"python": platform.python_version(), **packages})
    model = {name: f"{choice.value} ({choice.why})" for name, choice in choices.items()}
    if opened.problem is not None:
        model["problem"] = opened.problem
    else:
        languages = opened.languages or []
        model |= {
            "scorer": opened.scorer or "",
            "identity": one_line(opened.identity or ""),
            "activation": opened.activation or "",
            "languages": languages if isinstance(languages, str) else " ".join(languages),
            "batch_tokens": str(opened.batch_tokens),
        }
    _print_section(f"model {config.model}", model, last=memory is None)
    if memory is not None:
        _print_section("memory, estimated", memory_rows(memory), last=True)


def _print_section(title: str, rows: dict[str, str], *, last: bool = False) -> None:
    print_line(title)
    for line in aligned([(f"  {name}", value) for name, value in rows.items()]):
        print_line(line)
    if not last:
        print_line()
