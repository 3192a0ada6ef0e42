"""``rerank-plugins eval``: how much better a ranking is than the first stage it started from."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rerank_plugins.cli.output import print_json, print_line, print_note, progress_bar
from rerank_plugins.cli.settings import add_settings, chosen_config
from rerank_plugins.cli.table import aligned, one_line
from rerank_plugins.errors import InputError
from rerank_plugins.evaluation.first_stage import DEPTH
from rerank_plugins.evaluation.reranking import SEED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.evaluation.measures import Measured
    from rerank_plugins.evaluation.reranking import Reranked
    from rerank_plugins.evaluation.sets import Query, RetrievalSet
    from rerank_plugins.reranker import Reranker

_ABOUT = """\
A set is a folder of queries.jsonl, corpus.jsonl, qrels.tsv and, where a first stage is given,
candidates.tsv; each may end in .gz. Otherwise the first stage is BM25 (k1 0.9, b 0.4). What it
found is shuffled before it is reranked, so that ties owe nothing to the first stage.
"""


_OF_ONE_MODEL: Final = {
    "backend",
    "dialect",
    "remote_model",
    "api_key",
    "revision",
    "precision",
    "max_length",
    "family",
}
"""Settings that speak of the configured model, and mean nothing to those that are compared."""


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
        "--depth",
        type=int,
        default=DEPTH,
        metavar="N",
        help=f"documents of the first stage per query ({DEPTH})",
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, metavar="N", help=f"of shuffles and draws ({SEED})"
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
    config = chosen_config(args)
    models = list(dict.fromkeys([*args.compare, config.model]))
    # All are read before the first is ranked: a slip in the last path should not cost an hour.
    chosen = [_read(folder, args) for folder in args.folders]
    results = []
    for dataset, queries in chosen:
        result = _evaluate(dataset, queries, config, models, args)
        results.append(result)
        if not args.json:
            _print_result(result, args.depth, last=len(results) == len(chosen))
    if args.json:
        print_json({"seed": args.seed, "depth": args.depth, "sets": list(map(_as_json, results))})
    return 0


def _read(folder: Path, args: argparse.Namespace) -> tuple[RetrievalSet, tuple[Query, ...]]:
    """Read a set, draw its queries, and say what of it lowers every measure."""
    from rerank_plugins.evaluation.reranking import choose_queries
    from rerank_plugins.evaluation.sets import read_set

    dataset = read_set(folder)
    queries = choose_queries(dataset, args.queries, seed=args.seed)
    if missing := dataset.missing_documents:
        print_note(
            f"{dataset.name}: not in the corpus, and so never found: {len(missing)} relevant "
            f"{'document' if len(missing) == 1 else 'documents'} of the qrels, such as "
            f"{min(missing)!r}"
        )
    return dataset, queries


def _evaluate(
    dataset: RetrievalSet,
    queries: Sequence[Query],
    config: RerankConfig,
    models: Sequence[str],
    args: argparse.Namespace,
) -> Result:
    from rerank_plugins.evaluation.first_stage import first_stage
    from rerank_plugins.evaluation.measures import measure

    found = first_stage(dataset, queries, depth=args.depth)
    before = measure(dataset.grades, found)
    reranked = {}
    for model in models:
        with _open(config, model) as reranker:
            run_ = _rerank(reranker, dataset, queries, found, args.seed)
        reranked[model] = run_, measure(dataset.grades, run_.rankings)
    return Result(dataset, len(queries), before, reranked)


def _for_model(config: RerankConfig, model: str) -> RerankConfig:
    """Return the settings for *model*: those that speak of another model are left out."""
    if model == config.model:
        return config
    kept = config.model_fields_set - _OF_ONE_MODEL
    return type(config)(**{name: getattr(config, name) for name in kept} | {"model": model})


def _open(config: RerankConfig, model: str) -> Reranker:
    """Open *model* with the settings; one that is compared is told an instruction if it takes any.

    The configured model has to take it, as everywhere.
    """
    from rerank_plugins.reranker import Reranker

    reranker = Reranker.from_config(_for_model(config, model))
    if model == config.model or config.instruction is None or reranker.takes_instruction:
        return reranker
    # Opened before the other is closed: both share the loaded model.
    with reranker:
        return Reranker.from_config(reranker.config.model_copy(update={"instruction": None}))


def _rerank(
    reranker: Reranker,
    dataset: RetrievalSet,
    queries: Sequence[Query],
    found: Mapping[str, Sequence[str]],
    seed: int,
) -> Reranked:
    from rerank_plugins.evaluation.reranking import rerank, warm_up

    label = f"{dataset.name}, {reranker.config.model}"
    with progress_bar(len(queries), unit="queries", label=label) as bar:
        # Loading is no part of the speed that is printed.
        warm_up(reranker, queries)
        return rerank(reranker, dataset, found, seed=seed, on_query=bar.update)


def _as_json(result: Result) -> dict[str, object]:
    dataset = result.dataset
    return {
        "name": dataset.name,
        "documents": len(dataset.documents),
        "queries": result.queries,
        "queries_without_relevant_documents": len(dataset.queries) - len(dataset.judged_queries),
        "relevant_documents_not_in_corpus": len(dataset.missing_documents),
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
    return "BM25" if dataset.first_stage is None else "as given"


def _label(model: str, scorers: Mapping[str, int]) -> str:
    """Name the model, and who answered in its place: the scorer of a language, say."""
    if list(scorers) == [model]:
        return model
    counted = [f"{name} {count}" for name, count in scorers.items()]
    return f"{model} (answered by {', '.join(counted if len(counted) > 1 else scorers)})"


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
    for model, (reranked, measured) in result.reranked.items():
        gains = measured.gains(result.first_stage)
        errors = measured.standard_errors(result.first_stage)
        rows += [
            (
                one_line(_label(model, reranked.scorers)),
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
