"""``rerank-plugins export``: a PyTorch model as ONNX files, each checked against torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from rerank_plugins.cli.output import print_json, print_line, print_note
from rerank_plugins.cli.settings import add_settings, chosen_config
from rerank_plugins.cli.table import aligned
from rerank_plugins.errors import InputError
from rerank_plugins.options import EMBEDDED, LEXICAL

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rerank_plugins.export.record import Exported

SETTINGS: Final = (
    "max_length",
    "truncation",
    "revision",
    "local_files_only",
    "trust_remote_code",
    "allow_pickle",
)
"""Those that change what is exported, or the texts that it is checked with."""

DEFAULT_FORMATS: Final = "fp32,optimized,int8,fp16"


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "export",
        help="write a PyTorch model as ONNX files, and how far each is from it",
        description="Write a PyTorch model as ONNX files, check each against torch on real text, "
        "and write the differences beside them.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face id, or a local folder")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the files go")
    parser.add_argument(
        "--formats",
        default=DEFAULT_FORMATS,
        metavar="LIST",
        help=f"of fp32, optimized, int8, fp16, int8-dynamic ({DEFAULT_FORMATS})",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help='JSON lines of {"query", "document"}: half of the queries set the scales of int8, '
        "half check; docstrings of Python's standard library otherwise",
    )
    parser.add_argument("--force", action="store_true", help="write into a folder that has files")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser, only=SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Export, and print how far each file is from torch."""
    from rerank_plugins.export.exporting import export_model
    from rerank_plugins.export.formats import parse_formats
    from rerank_plugins.export.texts import read_pairs, sample_texts

    if args.model in (EMBEDDED, LEXICAL):
        raise InputError(f"model {args.model!r} ships with this package and needs no export")
    formats = parse_formats(args.formats)
    config = chosen_config(args)
    texts = sample_texts() if args.calibration is None else read_pairs(args.calibration)
    done = export_model(
        config, args.folder, texts, formats=formats, force=args.force, say=print_note
    )
    if args.json:
        print_json({item.format.file: _as_json(item) for item in done})
    else:
        _print_table(done, texts.source)
    return 0


def _as_json(item: Exported) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "format": item.format.name,
        "bytes": item.bytes,
        "checked_on": item.checked_on,
        "drift": None if item.drift is None else asdict(item.drift),
        "left_out": item.left_out,
    }


def _print_table(done: Sequence[Exported], source: str) -> None:
    rows: list[tuple[str, ...]] = [("file", "MB", "mean", "p99", "max", "Spearman", "top 1 kept")]
    for item in done:
        if item.left_out is None and item.drift is not None:
            drift = item.drift
            differences = (f"{value:.1e}" for value in (drift.mean, drift.p99, drift.max))
            agreement = (_rounded(value) for value in (drift.spearman, drift.top1_kept))
            rows.append((item.format.file, f"{item.bytes / 1e6:.1f}", *differences, *agreement))
    for line in aligned(rows, right=frozenset(range(1, len(rows[0])))):
        print_line(line)
    for item in done:
        if item.left_out is not None:
            print_note(f"left out: {item.format.file}: {item.left_out}")
        elif item.checked_on != "cpu":
            print_note(f"{item.format.file} was checked on {item.checked_on}")
    print_note(f"differences of logits from torch in float32, on {source}")


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
