"""``rerank-plugins batch``: a file of queries with their documents → a file of ranked rows."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rerank_plugins.batch.options import CHUNK_PAIRS, NOT_READ, BatchOptions
from rerank_plugins.cli.output import print_json, print_note, progress_bar
from rerank_plugins.cli.settings import add_settings, chosen_config, setting_names
from rerank_plugins.errors import InputError

if TYPE_CHECKING:
    from tqdm import tqdm

    from rerank_plugins.batch.running import BatchResult, RankChunks

_ABOUT = """\
IN holds a query a line, {"query_id", "query", "documents": [text or {"id", "text"}, ...]},
or a pair a line, {"query_id", "query", "document_id", "document"}, as .jsonl, .jsonl.gz or
.parquet; ids may be left out. OUT gets a row for each ranked document, as .parquet or .jsonl.
What is done is kept beside it until it is written: --resume goes on after a crash.
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "batch",
        help="rerank a whole file of queries, with checkpoints",
        description=f"Rerank a whole file of queries with their documents.\n\n{_ABOUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("source", metavar="IN", type=Path, help="queries with their documents")
    parser.add_argument("output", metavar="OUT", type=Path, help="the rows of the rankings")
    parser.add_argument("--top-n", type=int, metavar="N", help="keep the best N; all otherwise")
    parser.add_argument("--score-threshold", type=float, metavar="SCORE", help="lowest score kept")
    parser.add_argument(
        "--min-results", type=int, default=0, metavar="N", help="keep these whatever the threshold"
    )
    parser.add_argument("--texts", action="store_true", help="write the texts into the rows, too")
    parser.add_argument(
        "--on-bad",
        choices=("stop", "skip"),
        default="stop",
        help="a query that cannot be ranked ends the batch, or is left out and listed (stop)",
    )
    parser.add_argument(
        "--chunk-pairs",
        type=int,
        default=CHUNK_PAIRS,
        metavar="N",
        help=f"pairs from one checkpoint to the next ({CHUNK_PAIRS})",
    )
    parser.add_argument("--resume", action="store_true", help="go on with a batch broken off")
    parser.add_argument(
        "--force", action="store_true", help="replace OUT, and what an earlier batch left beside it"
    )
    parser.add_argument("--json", action="store_true", help="print what was done as a JSON object")
    _add_ray(parser)
    add_settings(parser, only=set(setting_names()) - NOT_READ)


def _add_ray(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Ray", "IN and OUT must be at the same path on every node.")
    group.add_argument("--ray", action="store_true", help="rank on a Ray cluster, or all of here")
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="of a cluster; RAY_ADDRESS, or one started here"
    )
    group.add_argument(
        "--ray-workers", type=int, metavar="N", help="hold at most N models; what fits otherwise"
    )
    group.add_argument("--ray-cpus", type=float, metavar="N", help="cores that each reserves (1)")
    group.add_argument("--ray-gpus", type=float, metavar="N", help="GPUs that each reserves (0)")


def _rank_chunks(args: argparse.Namespace) -> RankChunks | None:
    """Return what ranks: Ray where it is asked for, this process otherwise."""
    flags = {
        "address": args.ray_address,
        "max_workers": args.ray_workers,
        "cpus": args.ray_cpus,
        "gpus": args.ray_gpus,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if not args.ray:
        if given:
            raise InputError("--ray-address, --ray-workers, --ray-cpus and --ray-gpus need --ray")
        return None
    from rerank_plugins.distributed.batches import RayBatch
    from rerank_plugins.distributed.rays import import_ray

    # Before the input is read: an extra that is missing is told at once.
    import_ray("data")
    # It would tell of its plans between the bar and the summary.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return RayBatch(**given)


def run(args: argparse.Namespace) -> int:
    """Rank the file, and say what came of it."""
    from rerank_plugins.batch.running import run_batch

    config = chosen_config(args)
    options = BatchOptions(
        top_n=args.top_n,
        score_threshold=args.score_threshold,
        min_results=args.min_results,
        texts=args.texts,
        on_bad=args.on_bad,
        chunk_pairs=args.chunk_pairs,
    )
    try:
        with _Bars() as bars:
            result = run_batch(
                args.source,
                args.output,
                config,
                options,
                resume=args.resume,
                force=args.force,
                progress=bars,
                rank_chunks=_rank_chunks(args),
            )
    except KeyboardInterrupt as exc:
        for note in getattr(exc, "__notes__", ()):
            print_note(note)
        raise
    print_note(_summary(result))
    if args.json:
        print_json(_as_json(result))
    return 0


class _Bars:
    """Shows how far a batch is: first how much of the input is read, then how much is ranked."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def read(self, queries: int) -> None:
        if self._bar is None:
            self._bar = progress_bar(0, unit="queries", label="reading")
        self._bar.update(queries)

    def begins(self, pairs: int, done: int) -> None:
        self.__exit__()
        self._bar = progress_bar(pairs, unit="pairs", label="ranking")
        # What was done before took no time now.
        self._bar.initial = self._bar.n = done

    def ranked(self, pairs: int) -> None:
        if self._bar is not None:
            self._bar.update(pairs)


def _summary(result: BatchResult) -> str:
    from rerank_plugins.batch.joining import skipped_file

    parts = [
        f"{result.queries} queries",
        f"{result.pairs} pairs",
        f"{result.rows} rows in {result.output}",
        f"scored by {', '.join(result.scorers) or 'nobody'}",
        f"{result.pairs_per_s:.0f} pairs/s",
    ]
    if result.ranked_pairs < result.pairs:
        parts.append(f"{result.pairs - result.ranked_pairs} pairs were done before")
    if result.skipped:
        listed = skipped_file(result.output)
        parts.append(f"skipped {result.skipped} queries, listed in {listed}")
    return " · ".join(parts)


def _as_json(result: BatchResult) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(result), "output": str(result.output), "pairs_per_s": result.pairs_per_s}
