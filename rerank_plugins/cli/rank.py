"""``rerank-plugins rank``: documents from files, folders or a pipe, best first."""

from __future__ import annotations

import argparse
import asyncio
import math
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, get_args

from rerank_plugins.cli.output import flush, print_json, print_line, print_note, progress_bar
from rerank_plugins.cli.settings import add_settings, chosen_config
from rerank_plugins.cli.table import GAP, aligned, cells, clip, clip_start, one_line, terminal_width
from rerank_plugins.documents import (
    TEXT_FIELDS,
    Format,
    NoFieldError,
    Reading,
    Split,
    read_documents,
    skipped_note,
)
from rerank_plugins.errors import InputError
from rerank_plugins.evaluation.lines import check_characters
from rerank_plugins.requests import check_query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tqdm import tqdm

    from rerank_plugins.documents import SourceDocument
    from rerank_plugins.reranker import Reranker
    from rerank_plugins.results import Ranking

_REFRESH_S = 0.2
_EXAMPLES = """\
examples:
  rerank-plugins rank "how do I undo a commit" docs/
  rerank-plugins rank "timeout" --split line < server.log
  rerank-plugins rank "refund policy" faq.jsonl --top-n 3 --json
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "rank",
        help="rank the documents in files, folders or standard input by a query",
        description="Rank documents by how well they answer a query, best first.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("query", metavar="QUERY", help="what the documents are ranked by")
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="text file, .jsonl file (one JSON string or object a line) or folder; "
        '"-" or none is standard input',
    )
    parser.add_argument(
        "--top-n", type=_top_n, default=10, metavar="N", help='how many to keep, or "all" (10)'
    )
    parser.add_argument("--score-threshold", type=_score, metavar="SCORE", help="lowest score kept")
    parser.add_argument(
        "--min-results",
        type=_count,
        default=0,
        metavar="N",
        help="keep these whatever the threshold",
    )
    parser.add_argument(
        "--split", choices=get_args(Split), default="paragraph", help="what of a text is a document"
    )
    parser.add_argument(
        "--format", choices=get_args(Format), default="auto", help="how files are read"
    )
    parser.add_argument(
        "--field", metavar="NAME", help=f"field of JSON objects to rank ({', '.join(TEXT_FIELDS)})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Read, rank, print."""
    config = chosen_config(args)
    _check_query(args.query)
    reading = Reading(format=args.format, split=args.split, field=args.field)
    try:
        read = read_documents(args.paths, reading)
    except NoFieldError as exc:
        raise InputError(f"{exc}: choose one with --field") from None
    if note := skipped_note(read.skipped):
        print_note(note)
    from rerank_plugins.reranker import Reranker

    with Reranker.from_config(config) as reranker:
        ranking = asyncio.run(_rank(reranker, args, [document.text for document in read.documents]))
    if args.json:
        print_json(_as_json(ranking, read.documents))
    else:
        _print_table(ranking, read.documents)
    return 0


def _top_n(text: str) -> int | None:
    if text == "all":
        return None
    if not _is_count(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f'expected a whole number of at least 1, or "all", got {text!r}'
        )
    return int(text)


def _count(text: str) -> int:
    if not _is_count(text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return score


def _check_query(query: str) -> None:
    """See that the query is text before anything is read."""
    check_characters(query, "the query")
    check_query(query)


async def _rank(reranker: Reranker, args: argparse.Namespace, texts: Sequence[str]) -> Ranking:
    """Rank, and show how far it is: on an event loop, so that Ctrl-C ends both at once."""
    with progress_bar(len(texts), unit="documents", label="ranking") as bar:
        task = asyncio.create_task(
            reranker.arank(
                args.query,
                texts,
                top_n=args.top_n,
                score_threshold=args.score_threshold,
                min_results=args.min_results,
            )
        )
        while not task.done():
            await asyncio.wait({task}, timeout=None if bar.disable else _REFRESH_S)
            _advance(bar, reranker)
        return task.result()


def _advance(bar: tqdm[object], reranker: Reranker) -> None:
    if bar.disable:
        return
    answered = sum(
        stats.pairs_scored + stats.pairs_joined + stats.cache_hits + stats.shared_hits
        for stats in reranker.stats().values()
    )
    bar.update(min(answered, bar.total or 0) - bar.n)


def _as_json(ranking: Ranking, documents: Sequence[SourceDocument]) -> dict[str, object]:
    return {
        "query": ranking.query,
        "scorer": ranking.scorer,
        "activation": ranking.activation,
        "language": ranking.language,
        "documents": [
            {
                "index": ranked.index,
                "score": ranked.score,
                "logit": ranked.logit,
                "text": ranked.text,
                "source": documents[ranked.index].source,
                "truncated": ranked.truncated,
                "cached": ranked.cached,
                "duplicate_of": ranked.duplicate_of,
                "window": None if ranked.window is None else asdict(ranked.window),
            }
            for ranked in ranking
        ],
        "dropped": [
            {
                "index": dropped.index,
                "text": dropped.text,
                "source": documents[dropped.index].source,
                "reason": dropped.reason,
                "duplicate_of": dropped.duplicate_of,
            }
            for dropped in ranking.dropped
        ],
    }


def _print_table(ranking: Ranking, documents: Sequence[SourceDocument]) -> None:
    width = terminal_width()
    # A path may take a third of the line; the text is what one came for.
    rows = [
        (
            str(rank),
            _number(ranked.score),
            clip_start(one_line(documents[ranked.index].source), max(12, width // 3)),
        )
        for rank, ranked in enumerate(ranking, start=1)
    ]
    heads = aligned([("rank", "score", "source"), *rows], right=frozenset({0, 1}))
    left = max(map(cells, heads)) + len(GAP)
    texts = ["text", *(clip(one_line(ranked.text), max(20, width - left)) for ranked in ranking)]
    for head, text in zip(heads, texts, strict=True):
        print_line(f"{head}{' ' * (left - cells(head))}{text}".rstrip())
    flush()
    print_note(_summary(ranking, len(documents)))


def _number(score: float) -> str:
    """Four places; where they would hide the number, its order of magnitude."""
    plain = score == 0 or 1e-4 <= abs(score) < 1e5
    return f"{score:.4f}" if plain else f"{score:.1e}"


_DROPPED = {
    "duplicate": "dropped as duplicates: {}",
    "max_candidates": "dropped by --max-candidates: {}",
}


def _summary(ranking: Ranking, total: int) -> str:
    parts = [f"{len(ranking)} of {total} documents", f"scorer {ranking.scorer}"]
    if ranking.language is not None:
        parts.append(f"query language {ranking.language}")
    reasons = Counter(dropped.reason for dropped in ranking.dropped)
    parts += [_DROPPED[reason].format(count) for reason, count in sorted(reasons.items())]
    if truncated := sum(ranked.truncated for ranked in ranking):
        parts.append(f"{truncated} longer than the scorer reads")
    return " · ".join(parts)
