"""Both frameworks, one engine: the same scores, and the second one is served by the cache."""

from __future__ import annotations

import time

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from stdlib_docs import harvest

from rerank_plugins import Reranker
from rerank_plugins.evaluation.first_stage import FirstStage
from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.llama_index import RerankPostprocessor

QUESTION = "How do I find the most common items in a list?"


def main() -> None:
    docstrings = harvest()
    index = FirstStage(docstring.text for docstring in docstrings)
    found = [docstrings[place] for place, _ in index.search(QUESTION, 30)]

    with Reranker() as reranker:
        compressor = RerankCompressor(reranker=reranker, top_n=5)
        postprocessor = RerankPostprocessor(reranker=reranker, top_n=5)
        reranker.warmup()

        start = time.perf_counter()
        documents = compressor.compress_documents(
            [Document(page_content=d.text, metadata={"source": d.name}) for d in found], QUESTION
        )
        langchain_ms = (time.perf_counter() - start) * 1000

        start = time.perf_counter()
        nodes = postprocessor.postprocess_nodes(
            [NodeWithScore(node=TextNode(text=d.text)) for d in found], query_str=QUESTION
        )
        llama_index_ms = (time.perf_counter() - start) * 1000
        stats = reranker.stats()

    print(f"{QUESTION}\n\n  LangChain   LlamaIndex  document")
    for document, each in zip(documents, nodes, strict=True):
        score = document.metadata["relevance_score"]
        print(f"  {score:.6f}    {each.score:.6f}    {document.metadata['source']}")
        assert (each.score, each.node.get_content()) == (score, document.page_content)
    print(f"\nThe same {len(nodes)} documents with the same scores, in the same order.")
    print(f"LangChain first:  {langchain_ms:6.1f} ms, {len(found)} pairs scored")
    hits = sum(counted.cache_hits for counted in stats.values())
    print(f"then LlamaIndex:  {llama_index_ms:6.1f} ms, {hits} pairs from the cache")


if __name__ == "__main__":
    main()
