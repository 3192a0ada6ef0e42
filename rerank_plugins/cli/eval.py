"""``rerank-plugins eval``: how much better a ranking is than the first stage it started from."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rerank_plugins.cli.output import print_json, print_line, progress_bar
from rerank_plugins.cli.settings import add_settings, chosen_config
from rerank_plugins.cli.table import aligned
from rerank_plugins.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.evaluation.measures import Measured
    from rerank_plugins.evaluation.reranking import Reranked
    from rerank_plugins.evaluation.sets import RetrievalSet

_SEED: Final = 13
_DEPTH: Final = 100
_ABOUT = """\
A set is a folder of queries.jsonl, corpus.jsonl, qrels.tsv and, where a first stage is given,
candidates.tsv; each may end in .gz. Otherwise the first stage is BM25 (k1 0.9, b 0.4). Candidates
are shuffled before they are reranked, so that ties owe nothing to the first stage.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """A set, its first stage, and what each model made of it, by model name."""

    dataset: RetrievalSet
    queries: int
    first_stage: Measured
    reranked: Mapping[str, tuple[Reranked, Measured]]


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "eval",
        help="measure rankings on retrieval sets",
        description=f"Measure rankings on retrieval sets.\n\n{_ABOUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="a retrieval set")
    parser.add_argument("--queries", type=int, metavar="N", help="draw N queries; all otherwise")
    parser.add_argument(
        "--depth", type=int, default=_DEPTH, metavar="N", help=f"candidates per query ({_DEPTH})"
    )
    parser.add_argument(
        "--seed", type=int, default=_SEED, metavar="N", help=f"of shuffles and draws ({_SEED})"
    )
    parser.add_argument(
        "--compare", action="append", default=[], metavar="MODEL", help="measure this one too"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Read, search, rerank, measure, print; set by set."""
    for name in ("queries", "depth"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    from rerank_plugins.evaluation.sets import read_set

    config = chosen_config(args)
    models = list(dict.fromkeys([*args.compare, config.model]))
    # All are read before the first is ranked: a slip in the last path should not cost an hour.
    results = []
    for dataset in [read_set(folder) for folder in args.folders]:
        result = _evaluate(dataset, config, models, args)
        results.append(result)
        if not args.json:
            _print_result(result, args.depth, last=len(results) == len(args.folders))
    if args.json:
        print_json({"seed": args.seed, "depth": args.depth, "sets": list(map(_as_json, results))})
    return 0


def _evaluate(
    dataset: RetrievalSet, config: RerankConfig, models: Sequence[str], args: argparse.Namespace
) -> Result:
    from rerank_plugins.evaluation.first_stage import first_stage
    from rerank_plugins.evaluation.measures import measure
    from rerank_plugins.evaluation.reranking import choose_queries

    queries = choose_queries(dataset, args.queries, seed=args.seed)
    if not queries:
        raise InputError(f"{dataset.name}: no query has a relevant document in the qrels")
    candidates = first_stage(dataset, queries, depth=args.depth)
    before = measure(dataset.grades, candidates)
    reranked = {}
    for model in models:
        run_ = _rerank(_for_model(config, model), dataset, candidates, args.seed)
        reranked[model] = run_, measure(dataset.grades, run_.rankings)
    return Result(dataset, len(queries), before, reranked)


def _for_model(config: RerankConfig, model: str) -> RerankConfig:
    """Return the settings for *model*: those that speak of another model are left out."""
    if model == config.model:
        return config
    kept = config.model_fields_set - {"backend", "revision", "precision", "max_length"}
    return type(config)(**{name: getattr(config, name) for name in kept} | {"model": model})


def _rerank(
    config: RerankConfig,
    dataset: RetrievalSet,
    candidates: Mapping[str, Sequence[str]],
    seed: int,
) -> Reranked:
    from rerank_plugins.evaluation.reranking import rerank
    from rerank_plugins.reranker import Reranker

    label = f"{dataset.name}, {config.model}"
    with (
        Reranker.from_config(config) as reranker,
        progress_bar(len(candidates), unit="queries", label=label) as bar,
    ):
        # Loading is no part of the speed that is printed.
        reranker.warmup()
        return rerank(reranker, dataset, candidates, seed=seed, on_query=bar.update)


def _as_json(result: Result) -> dict[str, object]:
    dataset = result.dataset
    return {
        "name": dataset.name,
        "documents": len(dataset.documents),
        "queries": result.queries,
        "queries_without_relevant_documents": len(dataset.queries) - len(dataset.judged_queries),
        "first_stage": {"name": _first_stage_name(dataset), "measures": result.first_stage.means()},
        "rerankers": [
            {
                "model": model,
                "scorers": dict(reranked.scorers),
                "pairs": reranked.pairs,
                "seconds": reranked.seconds,
                "pairs_per_s": reranked.pairs_per_s,
                "measures": measured.means(),
                "gains": measured.gains(result.first_stage),
                "standard_errors": measured.standard_errors(result.first_stage),
            }
            for model, (reranked, measured) in result.reranked.items()
        ],
    }


def _first_stage_name(dataset: RetrievalSet) -> str:
    return "BM25" if dataset.candidates is None else "given candidates"


def _print_result(result: Result, depth: int, *, last: bool) -> None:
    dataset = result.dataset
    first_stage = _first_stage_name(dataset)
    print_line(
        f"{dataset.name} · {result.queries} queries · {len(dataset.documents)} documents · "
        f"first stage: {first_stage}, top {depth}"
    )
    means = result.first_stage.means()
    rows = [
        ("", *means, "pairs/s", "seconds"),
        (first_stage, *(f"{value:.3f}" for value in means.values()), "", ""),
    ]
    for reranked, measured in result.reranked.values():
        gains = measured.gains(result.first_stage)
        errors = measured.standard_errors(result.first_stage)
        rows += [
            (
                " + ".join(reranked.scorers),
                *(f"{value:.3f}" for value in measured.means().values()),
                f"{reranked.pairs_per_s:.0f}",
                f"{reranked.seconds:.1f}",
            ),
            ("  gain", *(f"{gain:+.3f}" for gain in gains.values()), "", ""),
            ("  standard error", *(f"{error:.3f}" for error in errors.values()), "", ""),
        ]
    for line in aligned(rows, right=frozenset(range(1, len(rows[0])))):
        print_line(line)
    if not last:
        print_line()
