"""Which path speaks which dialect: a prefix pins one, bare paths serve the commonest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rerank_plugins.service.dialects import cohere, common, infinity, jina, nim, tei, vllm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rerank_plugins.service.dialects.dialect import AnyEndpoint, Dialect

PATHS: Final[Mapping[str, tuple[AnyEndpoint, ...]]] = {
    "/rerank": (common.RERANK, tei.RERANK),
    "/v1/rerank": (common.RERANK,),
    "/v2/rerank": (cohere.RERANK_V2,),
    "/v1/ranking": (nim.RANKING,),
    "/score": (vllm.SCORE,),
    "/v1/score": (vllm.SCORE,),
    "/tei/rerank": (tei.RERANK,),
    "/infinity/rerank": (infinity.RERANK,),
    "/infinity/v1/rerank": (infinity.RERANK,),
    "/jina/v1/rerank": (jina.RERANK,),
    "/cohere/v1/rerank": (cohere.RERANK_V1,),
    "/cohere/v2/rerank": (cohere.RERANK_V2,),
    "/vllm/rerank": (vllm.RERANK,),
    "/vllm/v1/rerank": (vllm.RERANK,),
    "/vllm/v2/rerank": (vllm.RERANK,),
    "/vllm/score": (vllm.SCORE,),
    "/vllm/v1/score": (vllm.SCORE,),
    "/nim/v1/ranking": (nim.RANKING,),
}
"""Endpoints by path; where there are two, `endpoint_of` chooses by what was sent."""

PREFIXES: Final[Mapping[str, Dialect]] = {
    dialect.name: dialect
    for dialect in (tei.TEI, infinity.INFINITY, jina.JINA, cohere.COHERE, vllm.VLLM, nim.NIM)
}


def endpoint_of(endpoints: tuple[AnyEndpoint, ...], sent: Mapping[str, object]) -> AnyEndpoint:
    """Return whose request *sent* is: only TEI has ``texts``."""
    return endpoints[-1] if len(endpoints) > 1 and "texts" in sent else endpoints[0]


def dialect_at(path: str) -> Dialect:
    """Return the dialect in which a request at *path* is refused before it is read."""
    if path in PATHS:
        return PATHS[path][0].dialect
    return PREFIXES.get(path.split("/", 2)[1] if "/" in path else "", common.COMMON)
