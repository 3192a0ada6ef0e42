"""RAG with LangChain: 30 docstrings by BM25, the best 3 by the reranker, into a prompt.

Run it: python examples/langchain_rag.py "How do I pretty-print a dictionary?"
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from pydantic import PrivateAttr
from stdlib_docs import harvest

from rerank_plugins.evaluation.first_stage import FirstStage
from rerank_plugins.langchain import RerankRetriever

if TYPE_CHECKING:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun

QUESTION = "How do I parse a date string like 2024-05-01?"

PROMPT = ChatPromptTemplate.from_template(
    "Answer from these excerpts of Python's documentation alone.\n\n{context}\n\n"
    "Question: {question}"
)


class Bm25Retriever(BaseRetriever):
    """Finds documents by their words; any retriever of yours takes its place."""

    documents: list[Document]
    k: int = 30

    _index: FirstStage = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:  # noqa: ANN401  pydantic's
        """Index the documents once they stand."""
        super().model_post_init(context)
        self._index = FirstStage(document.page_content for document in self.documents)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002  LangChain passes it
    ) -> list[Document]:
        return [self.documents[place] for place, _ in self._index.search(query, self.k)]


def stdlib_documents() -> list[Document]:
    return [
        Document(page_content=docstring.text, metadata={"source": docstring.name})
        for docstring in harvest()
    ]


def main(question: str) -> None:
    documents = stdlib_documents()
    first = Bm25Retriever(documents=documents)
    retriever = RerankRetriever(base_retriever=first, top_n=3)

    best = retriever.invoke(question)

    print(f"Question: {question}")
    if not best:
        print(f"None of {len(documents)} docstrings has a word of it: there is nothing to rerank.")
        return
    found = len(first.invoke(question))
    print(f"{len(documents)} docstrings → {found} by BM25 → {len(best)} by the reranker:\n")
    for document in best:
        print(f"  {document.metadata['relevance_score']:.3f}  {document.metadata['source']}")
    context = "\n\n".join(document.page_content for document in best)
    prompt = PROMPT.invoke({"context": context, "question": question})
    print(f"\nWhat a language model gets:\n\n{prompt.to_string()}\n")
    print(f"Answer: {ask(prompt)}")


def ask(prompt: Any) -> str:  # noqa: ANN401  a prompt value of LangChain
    """Ask a language model, if the reader has set one up."""
    if "OPENAI_API_KEY" not in os.environ or importlib.util.find_spec("langchain_openai") is None:
        return "no language model is set up; set OPENAI_API_KEY and pip install langchain-openai"
    from langchain_openai import ChatOpenAI

    return str(
        ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-4o-mini")).invoke(prompt).content
    )


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or QUESTION)
