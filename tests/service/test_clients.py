"""Clients that nobody here wrote, pointed at the service: order, fields and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.testing import FakeScorer
from tests.service.conftest import DOCUMENTS, LOGITS, ORDER, QUERY, SCORES, TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    Serve = Callable[..., httpx.Client]

# What the clients themselves do, on import or by old habits.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def _url(client: httpx.Client, prefix: str = "") -> str:
    return str(client.base_url).rstrip("/") + prefix


@pytest.mark.parametrize("prefix", ["", "/cohere"])
def test_cohere_v2(client: httpx.Client, prefix: str) -> None:
    cohere = pytest.importorskip("cohere")
    sdk = cohere.ClientV2(api_key="any", base_url=_url(client, prefix))

    answer = sdk.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS)

    assert [(each.index, each.relevance_score) for each in answer.results] == list(
        zip(ORDER, SCORES, strict=True)
    )
    assert answer.meta.billed_units.search_units == 1
    assert answer.meta.tokens.input_tokens == TOKENS
    assert answer.meta.api_version.version == "2"
    two = sdk.rerank(
        model="rerank-v3.5", query=QUERY, documents=DOCUMENTS, top_n=2, max_tokens_per_doc=4096,
        priority=3,
    )  # fmt: skip
    assert [each.index for each in two.results] == ORDER[:2]


@pytest.mark.parametrize("prefix", ["", "/cohere"])
def test_cohere_v1(client: httpx.Client, prefix: str) -> None:
    cohere = pytest.importorskip("cohere")
    sdk = cohere.Client(api_key="any", base_url=_url(client, prefix))
    documents = [{"text": text, "id": str(place)} for place, text in enumerate(DOCUMENTS)]

    answer = sdk.rerank(
        model="rerank-v3.5", query=QUERY, documents=documents, top_n=1, return_documents=True
    )

    (best,) = answer.results
    assert (best.index, best.relevance_score) == (1, SCORES[0])
    assert (best.document.text, best.document.id) == (DOCUMENTS[1], "1")
    assert answer.meta.billed_units.search_units == 1


async def test_cohere_from_an_event_loop(client: httpx.Client) -> None:
    cohere = pytest.importorskip("cohere")
    sdk = cohere.AsyncClientV2(api_key="any", base_url=_url(client))

    answer = await sdk.rerank(model="m", query=QUERY, documents=DOCUMENTS)

    assert [each.index for each in answer.results] == ORDER


def test_cohere_raises_its_own_errors(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    cohere = pytest.importorskip("cohere")
    client = serve(api_keys=("right",), strict_models=True, max_documents=2)

    def rerank(key: str = "right", **what: Any) -> None:
        sdk = cohere.ClientV2(api_key=key, base_url=_url(client))
        given = {"model": "fake", "query": QUERY, "documents": DOCUMENTS[:2]} | what
        sdk.rerank(**given, request_options={"max_retries": 0})

    rerank()
    with pytest.raises(cohere.UnauthorizedError) as error:
        rerank("wrong")
    assert error.value.body == {"message": "a key is needed: Authorization: Bearer KEY"}
    with pytest.raises(cohere.NotFoundError, match=r"'rerank-v3\.5' is not served; there are fake"):
        rerank(model="rerank-v3.5")
    with pytest.raises(cohere.BadRequestError, match="documents: at most 2"):
        rerank(documents=DOCUMENTS)
    from rerank_plugins.errors import QueueFullError
    from rerank_plugins.reranker import Reranker

    async def full(*_: object, **__: object) -> None:
        raise QueueFullError("full", retry_after_s=1)

    monkeypatch.setattr(Reranker, "arank", full)
    with pytest.raises(cohere.TooManyRequestsError, match="too much is waiting"):
        rerank()


@pytest.mark.parametrize("prefix", ["", "/tei"])
def test_llama_index_tei(serve: Serve, prefix: str) -> None:
    tei = pytest.importorskip("llama_index.postprocessor.tei_rerank")
    from llama_index.core.schema import NodeWithScore, TextNode

    client = serve(api_keys=("right",))
    rerank = tei.TextEmbeddingInference(
        base_url=_url(client, prefix), top_n=2, auth_token="Bearer right"
    )
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.1) for text in DOCUMENTS]

    found = rerank.postprocess_nodes(nodes, query_str=QUERY)

    assert [node.text for node in found] == [DOCUMENTS[1], DOCUMENTS[2]]
    assert [node.score for node in found] == SCORES[:2]


@pytest.mark.parametrize("prefix", ["", "/jina"])
def test_langchain_jina(serve: Serve, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    module = pytest.importorskip("langchain_community.document_compressors.jina_rerank")
    from langchain_core.documents import Document

    client = serve(api_keys=("right",))
    monkeypatch.setattr(module, "JINA_API_URL", _url(client, f"{prefix}/v1/rerank"))
    documents = [Document(page_content=text, metadata={"id": text[0]}) for text in DOCUMENTS]
    rerank = module.JinaRerank(jina_api_key="right", top_n=2)

    found = rerank.compress_documents(documents, QUERY)

    assert [document.page_content for document in found] == [DOCUMENTS[1], DOCUMENTS[2]]
    assert [document.metadata["relevance_score"] for document in found] == SCORES[:2]
    wrong = module.JinaRerank(jina_api_key="wrong")
    with pytest.raises(RuntimeError, match="a key is needed"):
        wrong.compress_documents(documents, QUERY)
    with pytest.raises(RuntimeError, match="query: blank"):
        rerank.compress_documents(documents, " ")
    # Nobody else does, and what is left open is an error of the tests.
    rerank.session.close()
    wrong.session.close()


@pytest.mark.parametrize("prefix", ["", "/infinity"])
def test_langchain_infinity(client: httpx.Client, prefix: str) -> None:
    sdk = pytest.importorskip("infinity_client")
    module = pytest.importorskip("langchain_community.document_compressors.infinity_rerank")
    from langchain_core.documents import Document

    documents = [Document(page_content=text) for text in DOCUMENTS]
    sdk_client = sdk.Client(base_url=_url(client, prefix))
    rerank = module.InfinityRerank(client=sdk_client, top_n=2)

    found = rerank.compress_documents(documents, QUERY)
    sdk_client.get_httpx_client().close()

    assert [document.page_content for document in found] == [DOCUMENTS[1], DOCUMENTS[2]]


def test_one_service_and_the_reranker_agree(serve: Serve) -> None:
    from rerank_plugins.reranker import Reranker

    rule = {"a": 0.1, "b": 0.3}
    client = serve(FakeScorer(lambda _, document: rule.get(document, -2.0)))
    with Reranker(FakeScorer(lambda _, document: rule.get(document, -2.0))) as reranker:
        ranking = reranker.rank("q", ["a", "b", "c"])
    body = {"query": "q", "texts": ["a", "b", "c"]}

    found = client.post("/rerank", json=body).json()
    raw = client.post("/rerank", json=body | {"raw_scores": True}).json()

    assert [(each["index"], each["score"]) for each in found] == [
        (each.index, each.score) for each in ranking
    ]
    assert [each["score"] for each in raw] == [each.logit for each in ranking]
    assert sorted(LOGITS, reverse=True) == LOGITS
