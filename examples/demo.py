"""See it work: questions about Python, answered from its own docstrings, in both frameworks.

`make demo` runs this. With files of your own: make demo DOCS=folder QUERY="your question".
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass
from pathlib import Path

from langchain_core.documents import Document
from langchain_rag import Bm25Retriever as LangChainRetriever
from llama_index.core.schema import TextNode
from llama_index_rag import Bm25Retriever as LlamaIndexRetriever
from stdlib_docs import MODULES, Docstring, harvest

from rerank_plugins import RerankConfig, Reranker
from rerank_plugins.langchain import RerankRetriever
from rerank_plugins.llama_index import RerankPostprocessor

FIRST_STAGE = 50
SHOWN = 5
TEXT_FILES = (".md", ".rst", ".txt")

QUESTIONS = {
    "How do I split a shell command into its arguments?": {"shlex.split"},
    "What are the most frequent items in a list?": {"collections.Counter.most_common"},
    "How do I delete a folder with everything in it?": {"shutil.rmtree"},
    "How do I remember the results of a slow function call?": {
        "functools.cache",
        "functools.lru_cache",
    },
    "How do I run several coroutines at the same time?": {"asyncio.gather", "asyncio.TaskGroup"},
    "How do I find the three largest numbers in a list?": {"heapq.nlargest"},
    "How do I compare two lists of lines?": {
        "difflib.Differ",
        "difflib.context_diff",
        "difflib.ndiff",
        "difflib.unified_diff",
    },
    "How do I parse a date string like 2024-05-01?": {
        "datetime.date.fromisoformat",
        "datetime.datetime.fromisoformat",
        "datetime.datetime.strptime",
    },
    "How do I pretty-print a nested dictionary?": {
        "pprint.PrettyPrinter",
        "pprint.pformat",
        "pprint.pprint",
    },
    "How do I ask the user for a password without showing it?": {
        "getpass.getpass",
        "getpass.unix_getpass",
    },
}
"""Questions, and the names whose docstring answers them.

Chosen by where BM25 has the answer, among its 50 and seldom first: a tour, not a measurement.
"""


@dataclass(frozen=True)
class Answer:
    """Documents as one framework ranked them, before and after the reranker, with scores.

    They are numbered by their place in the corpus: ids survive both frameworks.
    """

    before: list[int]
    after: list[int]
    scores: list[float]
    seconds: float


class LangChainPipeline:
    """BM25 and the reranker as a LangChain retriever."""

    def __init__(self, docstrings: list[Docstring], reranker: Reranker) -> None:
        documents = [Document(id=str(i), page_content=d.text) for i, d in enumerate(docstrings)]
        self.first = LangChainRetriever(documents=documents, k=FIRST_STAGE)
        self.both = RerankRetriever(base_retriever=self.first, reranker=reranker, top_n=None)

    def ask(self, question: str) -> Answer:
        """Retrieve, and rerank against the clock."""
        before = self.first.invoke(question)
        start = time.perf_counter()
        after = self.both.invoke(question)
        return Answer(
            before=[int(document.id or 0) for document in before],
            after=[int(document.id or 0) for document in after],
            scores=[document.metadata["relevance_score"] for document in after],
            seconds=time.perf_counter() - start,
        )


class LlamaIndexPipeline:
    """BM25 and the reranker as a LlamaIndex retriever and postprocessor."""

    def __init__(self, docstrings: list[Docstring], reranker: Reranker) -> None:
        nodes = [TextNode(id_=str(i), text=d.text) for i, d in enumerate(docstrings)]
        self.first = LlamaIndexRetriever(nodes, k=FIRST_STAGE)
        self.reranker = RerankPostprocessor(reranker=reranker, top_n=None)

    def ask(self, question: str) -> Answer:
        """Retrieve, and rerank against the clock."""
        before = self.first.retrieve(question)
        start = time.perf_counter()
        after = self.reranker.postprocess_nodes(self.first.retrieve(question), query_str=question)
        return Answer(
            before=[int(each.node_id) for each in before],
            after=[int(each.node_id) for each in after],
            scores=[each.score or 0.0 for each in after],
            seconds=time.perf_counter() - start,
        )


Pipelines = dict[str, LangChainPipeline | LlamaIndexPipeline]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", help=f"rank the {', '.join(TEXT_FILES)} files below this")
    parser.add_argument("--query", help="ask this")
    args = parser.parse_args()
    if args.docs and not args.query:
        parser.error('--docs needs a --query: make demo DOCS=folder QUERY="your question"')
    docstrings = own_documents(Path(args.docs)) if args.docs else harvest()
    if not docstrings:
        parser.error(f"no text in {args.docs}: the demo reads {', '.join(TEXT_FILES)} files")
    where = args.docs or f"the docstrings of {len(MODULES)} modules of the standard library"
    print(f"{len(docstrings):,} documents from {where}")
    with Reranker.from_config(RerankConfig.from_env()) as reranker:
        start = time.perf_counter()
        reranker.warmup()
        print(f"model {reranker.config.model!r} loaded in {time.perf_counter() - start:.1f} s\n")
        pipelines: Pipelines = {
            "LangChain": LangChainPipeline(docstrings, reranker),
            "LlamaIndex": LlamaIndexPipeline(docstrings, reranker),
        }
        if args.query:
            show_one(args.query, pipelines, docstrings)
        else:
            show_table(pipelines, docstrings)
            show_time("First pass", reranker, pipelines)
            show_time("Second pass", reranker, pipelines)


def own_documents(folder: Path) -> list[Docstring]:
    """Return the paragraphs of the text files below *folder*, under the name of their file."""
    return [
        Docstring(str(path.relative_to(folder)), paragraph)
        for path in sorted(folder.rglob("*"))
        if path.suffix in TEXT_FILES and path.is_file()
        for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace"))
        if paragraph.strip()
    ]


def show_table(pipelines: Pipelines, docstrings: list[Docstring]) -> None:
    print(f"Place of the right docstring among {FIRST_STAGE}: by BM25 → by the reranker\n")
    print(f"{'question':<58}  {'LangChain':>9}  {'LlamaIndex':>10}  {'score':>6}")
    for question, names in QUESTIONS.items():
        right = {i for i, docstring in enumerate(docstrings) if docstring.name in names}
        answers = [pipeline.ask(question) for pipeline in pipelines.values()]
        moves = [f"{place(a.before, right)} → {place(a.after, right)}" for a in answers]
        score = next(
            (
                f"{s:.3f}"
                for i, s in zip(answers[0].after, answers[0].scores, strict=True)
                if i in right
            ),
            "",
        )
        print(f"{question:<58}  {moves[0]:>9}  {moves[1]:>10}  {score:>6}")
    print()


def place(ranked: list[int], right: set[int]) -> str:
    """Return the place of the first right one, counted from 1; a dash where there is none."""
    return next((str(rank) for rank, i in enumerate(ranked, start=1) if i in right), "-")


def show_time(title: str, reranker: Reranker, pipelines: Pipelines) -> None:
    """Ask every question; the first pass begins with an empty cache."""
    if title == "First pass":
        reranker.clear_cache()
    print(title)
    for name, pipeline in pipelines.items():
        scored, hits = counters(reranker)
        seconds = sum(pipeline.ask(question).seconds for question in QUESTIONS)
        scored_after, hits_after = counters(reranker)
        print(
            f"  {name:<10}  {seconds:6.3f} s   {scored_after - scored:4} pairs scored   "
            f"{hits_after - hits:4} from the cache"
        )


def counters(reranker: Reranker) -> tuple[int, int]:
    stats = reranker.stats().values()
    return sum(s.pairs_scored for s in stats), sum(s.cache_hits for s in stats)


def show_one(question: str, pipelines: Pipelines, docstrings: list[Docstring]) -> None:
    print(f"{question}\n")
    for name, pipeline in pipelines.items():
        answer = pipeline.ask(question)
        if not answer.before:
            print(f"{name}: BM25 finds no document with a word of the question")
            continue
        print(f"{name}, {answer.seconds * 1000:.0f} ms; place by BM25 → by the reranker")
        best = list(zip(answer.after, answer.scores, strict=True))[:SHOWN]
        for rank, (i, score) in enumerate(best, start=1):
            source = docstrings[i].name[-30:]
            text = " ".join(docstrings[i].text.split())[:48]
            print(f"  {answer.before.index(i) + 1:>2} → {rank}  {score:.3f}  {source:<30}  {text}")
        print()


if __name__ == "__main__":
    main()
