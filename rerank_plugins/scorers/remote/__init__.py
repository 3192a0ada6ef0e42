"""The remote scorer: pairs scored by servers that speak a reranking dialect over HTTP."""
