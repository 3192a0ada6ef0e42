"""RAG with LlamaIndex: 30 docstrings by BM25, the best 5 by the reranker, into a prompt.

Run it: python examples/llama_index_rag.py "How do I pretty-print a dictionary?"
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from llama_index.core import PromptTemplate
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from stdlib_docs import harvest

from rerank_plugins.evaluation.first_stage import FirstStage
from rerank_plugins.llama_index import RerankPostprocessor

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION = "How do I parse a date string like 2024-05-01?"

PROMPT = PromptTemplate(
    "Answer from these excerpts of Python's documentation alone.\n\n{context_str}\n\n"
    "Question: {query_str}"
)


class Bm25Retriever(BaseRetriever):
    """Finds nodes by their words; any retriever of yours takes its place."""

    def __init__(self, nodes: Sequence[TextNode], k: int = 30) -> None:
        super().__init__()
        self._nodes = nodes
        self._k = k
        self._index = FirstStage(node.text for node in nodes)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=self._nodes[place], score=score)
            for place, score in self._index.search(query_bundle.query_str, self._k)
        ]


def stdlib_nodes() -> list[TextNode]:
    # The name stands in the text already: as metadata it is for the reader, not for a model.
    return [
        TextNode(
            text=docstring.text,
            metadata={"source": docstring.name},
            excluded_embed_metadata_keys=["source"],
            excluded_llm_metadata_keys=["source"],
        )
        for docstring in harvest()
    ]


def main(question: str) -> None:
    nodes = stdlib_nodes()
    retriever = Bm25Retriever(nodes)
    reranker = RerankPostprocessor(top_n=5)
    # The same object goes into a query engine:
    # RetrieverQueryEngine.from_args(retriever, node_postprocessors=[reranker])

    found = retriever.retrieve(question)
    best = reranker.postprocess_nodes(found, query_str=question)

    print(f"Question: {question}")
    if not best:
        print(f"None of {len(nodes)} docstrings has a word of it: there is nothing to rerank.")
        return
    print(f"{len(nodes)} docstrings → {len(found)} by BM25 → {len(best)} by the reranker:\n")
    for each in best:
        facts = each.node.metadata
        print(f"  {each.score:.3f}  (BM25 {facts['retrieval_score']:5.2f})  {facts['source']}")
    context = "\n\n".join(each.node.get_content() for each in best)
    prompt = PROMPT.format(context_str=context, query_str=question)
    print(f"\nWhat a language model gets:\n\n{prompt}\n")
    print(f"Answer: {ask(prompt)}")


def ask(prompt: str) -> str:
    """Ask a language model, if the reader has set one up."""
    package = "llama_index.llms"
    there = importlib.util.find_spec(package) and importlib.util.find_spec(f"{package}.openai")
    if "OPENAI_API_KEY" not in os.environ or there is None:
        missing = "set OPENAI_API_KEY and pip install llama-index-llms-openai"
        return f"no language model is set up; {missing}"
    from llama_index.llms.openai import OpenAI

    return str(OpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-4o-mini")).complete(prompt))


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or QUESTION)
