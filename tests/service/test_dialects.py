"""Each dialect, field by field: what its clients send, and what they read in the answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.service.dialects.cohere import CohereAnswer
from rerank_plugins.testing import FakeScorer
from tests.service.conftest import DOCUMENTS, LOGITS, ORDER, QUERY, SCORES, TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

PLAIN = {"query": QUERY, "documents": DOCUMENTS}
USAGE = {"prompt_tokens": TOKENS, "total_tokens": TOKENS}


def _ask(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-scorer"] == "fake"
    return answer.json()


def _results(scores: list[float] = SCORES) -> list[dict[str, Any]]:
    return [
        {"index": index, "relevance_score": score}
        for index, score in zip(ORDER, scores, strict=False)
    ]


@pytest.mark.parametrize("path", ["/rerank", "/tei/rerank"])
def test_tei_answers_a_bare_list(client: httpx.Client, path: str) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS}
    ranks = [{"index": index, "score": score} for index, score in zip(ORDER, SCORES, strict=True)]

    assert _ask(client, path, body) == ranks
    # A field of other dialects: TEI returns every text.
    assert _ask(client, path, body | {"top_n": 1, "truncation_direction": "Right"}) == ranks
    raw = _ask(client, path, body | {"raw_scores": True, "return_text": True, "truncate": None})
    assert raw == [
        {"index": index, "text": DOCUMENTS[index], "score": logit}
        for index, logit in zip(ORDER, LOGITS, strict=True)
    ]


@pytest.mark.parametrize("path", ["/infinity/rerank", "/infinity/v1/rerank"])
def test_infinity_returns_documents_as_strings(client: httpx.Client, path: str) -> None:
    before = int(time.time())

    answer = _ask(client, path, PLAIN | {"model": "default/not-specified"})

    assert answer.pop("id").startswith("infinity-")
    assert before <= answer.pop("created") <= time.time()
    assert answer == {
        "object": "rerank", "results": _results(), "model": "fake", "usage": USAGE
    }  # fmt: skip
    more = _ask(client, path, PLAIN | {"return_documents": True, "top_n": 1, "raw_scores": True})
    assert more["results"] == [{**_results(LOGITS)[0], "document": DOCUMENTS[1]}]


def test_jina_returns_documents_as_objects_unless_told_not_to(client: httpx.Client) -> None:
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1], "id": 7}, DOCUMENTS[2]]
    body = PLAIN | {"documents": documents, "model": "jina-reranker-v2"}

    answer = _ask(client, "/jina/v1/rerank", body | {"top_n": 2})

    first, second = _results()[:2]
    assert answer == {
        "model": "fake",
        "usage": USAGE,
        "results": [
            {**first, "document": {"text": DOCUMENTS[1], "id": 7}},
            {**second, "document": {"text": DOCUMENTS[2]}},
        ],
    }
    bare = _ask(client, "/jina/v1/rerank", body | {"return_documents": False, "top_n": None})
    assert bare["results"] == _results()


@pytest.mark.parametrize("path", ["/v2/rerank", "/cohere/v2/rerank"])
def test_cohere_v2_counts_search_units(client: httpx.Client, path: str) -> None:
    body = PLAIN | {"model": "rerank-v3.5", "max_tokens_per_doc": None, "priority": 0}

    answer = _ask(client, path, body)

    assert isinstance(answer.pop("id"), str)
    assert answer == {
        "results": _results(),
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": TOKENS, "output_tokens": 0},
        },
    }
    many = _ask(client, path, body | {"documents": ["red"] * 101, "top_n": 1})
    assert many["meta"]["billed_units"] == {"search_units": 2}
    handed = _ask(client, path, body | {"return_documents": True, "top_n": 1})
    assert handed["results"][0]["document"] == {"text": DOCUMENTS[1]}


def test_cohere_v1_ranks_the_fields_that_are_named(client: httpx.Client) -> None:
    documents = [{"title": "a dog", "text": "red fox"}, {"title": "red fox", "year": 1999}]
    body = {"query": QUERY, "documents": documents, "rank_fields": ["title", "year"]}

    answer = _ask(client, "/cohere/v1/rerank", body | {"return_documents": True})

    assert [each["index"] for each in answer["results"]] == [1, 0]
    assert answer["results"][0]["document"] == documents[1]
    # What the OpenAPI document says of answers holds for objects without a text, too.
    assert CohereAnswer.model_validate(answer).meta.api_version.version == "1"
    assert "document" not in _ask(client, "/cohere/v1/rerank", body)["results"][0]


@pytest.mark.parametrize("path", ["/vllm/rerank", "/vllm/v1/rerank", "/vllm/v2/rerank"])
def test_vllm_always_returns_documents(client: httpx.Client, path: str) -> None:
    answer = _ask(client, path, PLAIN | {"top_n": 0, "truncate_prompt_tokens": -1})

    assert answer.pop("id").startswith("rerank-")
    assert answer == {
        "model": "fake",
        "usage": USAGE,
        "results": [
            {**each, "document": {"text": DOCUMENTS[each["index"]], "multi_modal": None}}
            for each in _results()
        ],
    }
    raw = _ask(client, path, PLAIN | {"use_activation": False, "top_n": 1})
    assert [each["relevance_score"] for each in raw["results"]] == [2.0]


@pytest.mark.parametrize("path", ["/score", "/v1/score", "/vllm/score"])
def test_scores_come_in_the_order_of_the_pairs(client: httpx.Client, path: str) -> None:
    answer = _ask(client, path, {"text_1": QUERY, "text_2": DOCUMENTS})

    assert answer.pop("id").startswith("score-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "list",
        "model": "fake",
        "data": [
            {"index": 0, "object": "score", "score": 0.5},
            {"index": 1, "object": "score", "score": SCORES[0]},
            {"index": 2, "object": "score", "score": SCORES[1]},
        ],
        "usage": USAGE,
    }
    pairs = {"queries": ["red", "dog", "red"], "documents": ["a dog", "a dog", "red fox"]}
    found = _ask(client, path, pairs | {"use_activation": False})
    assert [each["score"] for each in found["data"]] == [0.0, 1.0, 1.0]
    one = _ask(client, path, {"text_1": "red", "text_2": "red sky"})
    assert [each["index"] for each in one["data"]] == [0]


def test_every_pair_is_scored_whatever_the_settings_leave_out(
    serve: Callable[..., httpx.Client],
) -> None:
    client = serve(settings={"duplicates": "drop", "max_candidates": 1})
    body = {"text_1": QUERY, "text_2": ["red", "red", "fox"]}

    assert len(_ask(client, "/score", body)["data"]) == 3


@pytest.mark.parametrize("path", ["/v1/ranking", "/nim/v1/ranking"])
def test_nim_answers_logits(client: httpx.Client, path: str) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}

    answer = _ask(client, path, body | {"model": "nvidia/rerank", "truncate": "END"})

    rankings = [
        {"index": index, "logit": logit} for index, logit in zip(ORDER, LOGITS, strict=True)
    ]
    assert answer == {"rankings": rankings, "usage": USAGE}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_bare_paths_answer_what_jina_cohere_and_vllm_read(client: httpx.Client, path: str) -> None:
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1], "id": 7}, DOCUMENTS[2]]

    answer = _ask(client, path, PLAIN | {"documents": documents, "top_n": 1})

    assert answer["results"] == [{**_results()[0], "document": {"text": DOCUMENTS[1], "id": 7}}]
    assert (answer["object"], answer["model"], answer["usage"]) == ("rerank", "fake", USAGE)
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    assert {"id", "created"} <= set(answer)
    bare = _ask(client, path, PLAIN | {"return_documents": False, "raw_scores": True, "top_n": 0})
    assert bare["results"] == _results(LOGITS)


FORMS: dict[str, tuple[str, str]] = {
    "/tei/rerank": ("texts", "tei"),
    "/infinity/rerank": ("documents", "openai"),
    "/jina/v1/rerank": ("documents", "jina"),
    "/cohere/v1/rerank": ("documents", "cohere"),
    "/cohere/v2/rerank": ("documents", "cohere"),
    "/vllm/rerank": ("documents", "openai"),
    "/nim/v1/ranking": ("passages", "nim"),
    "/v1/rerank": ("documents", "common"),
    "/rerank": ("documents", "common"),
}


def _message(form: str, status: int, body: Any) -> str:
    """Check an error's form, and return its message."""
    match form:
        case "tei":
            assert set(body) == {"error", "error_type"}
            return body["error"]
        case "jina":
            assert set(body) == {"detail"}
            return body["detail"]
        case "cohere":
            assert set(body) == {"message"}
            return body["message"]
        case "nim":
            assert set(body) == {"object", "message", "detail", "type"}
            assert body["object"] == "error"
            return body["message"]
        case "common":
            assert set(body) == {"error", "message", "detail"}
            assert body["message"] == body["detail"] == body["error"]["message"]
        case _:
            assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == status
    return body["error"]["message"]


def _refused(
    client: httpx.Client, path: str, form: str, *, method: str = "POST", **what: Any
) -> tuple[int, str]:
    answer = client.request(method, path, **what)
    assert "x-request-id" in answer.headers
    return answer.status_code, _message(form, answer.status_code, answer.json())


def _body(path: str, field: str) -> dict[str, Any]:
    if field == "passages":
        return {"query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}
    return {"query": QUERY, field: list(DOCUMENTS)}


@pytest.mark.parametrize("path", FORMS)
def test_each_dialect_refuses_in_its_own_form(client: httpx.Client, path: str) -> None:
    field, form = FORMS[path]
    invalid = 400 if path.startswith(("/cohere", "/vllm")) else 422
    empty = 400 if path.startswith(("/cohere", "/vllm", "/tei")) else 422
    body = _body(path, field)

    assert _refused(client, path, form, content=b"{")[0] == 400
    assert _refused(client, path, form, json=[1])[0] == invalid
    assert _refused(client, path, form, json=body | {field: []})[0] == empty
    status, message = _refused(client, path, form, json=body | {field: ["a", 5]})
    assert (status, message.startswith(f"{field}[{0 if form == 'nim' else 1}]")) == (invalid, True)
    status, message = _refused(client, path, form, json={field: body[field]})
    assert (status, message) == (invalid, "query: Field required")
    status, message = _refused(client, path, form, method="GET")
    assert status == 405
    if path.count("/") > 2 or path == "/tei/rerank":
        prefix = "/" + path.split("/")[1]
        assert _refused(client, f"{prefix}/nothing", form)[0] == 404


def test_a_wrong_method_names_the_right_one(client: httpx.Client) -> None:
    assert client.get("/v1/rerank").headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/rerank", "/cohere/v2/rerank", "/vllm/rerank"])
@pytest.mark.parametrize("top_n", [-1, 1.5, "3", True])
def test_a_number_of_documents_is_a_number(client: httpx.Client, path: str, top_n: object) -> None:
    if path == "/vllm/rerank" and top_n == -1:
        pytest.skip("vLLM takes it for all")
    status = client.post(path, json=PLAIN | {"top_n": top_n}).status_code

    assert status == (422 if path == "/v1/rerank" else 400)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tei/rerank", {"query": "a", "texts": ["a b c d"], "truncate": False}, 422),
        (
            "/tei/rerank",
            {"query": "a", "texts": ["a b c d"], "truncation_direction": "Left"},
            422,
        ),
        (
            "/vllm/rerank",
            {"query": "a", "documents": ["a", "a b c d"], "truncation_side": "left", "top_n": 1},
            400,
        ),
        ("/score", {"text_1": "a", "text_2": ["a b c d"], "truncation_side": "left"}, 400),
        ("/v1/ranking", {"query": {"text": "a"}, "passages": [{"text": "a b c d"}]}, 422),
    ],
)
def test_what_may_not_be_cut_is_refused_where_it_would_be(
    serve: Callable[..., httpx.Client], path: str, body: dict[str, Any], status: int
) -> None:
    short = serve(FakeScorer(max_words=3))
    long = serve(FakeScorer(max_words=4))

    refused = short.post(path, json=body)

    assert refused.status_code == status
    assert "is longer than the model reads" in refused.text
    assert long.post(path, json=body).status_code == 200


def test_an_instruction_reaches_a_model_that_takes_one(
    serve: Callable[..., httpx.Client],
) -> None:
    taught = FakeScorer(instruction="find")
    client = serve(taught)
    for path in ("/v1/rerank", "/cohere/v2/rerank", "/infinity/rerank", "/jina/v1/rerank"):
        body = PLAIN | {"instruction": f"blue {path}", "top_n": None}
        assert client.post(path, json=body).status_code == 200

        assert any(query == f"blue {path}: {QUERY}" for query, _ in taught.pairs_scored)
    plain = serve(FakeScorer())
    refused = plain.post("/v1/rerank", json=PLAIN | {"instruction": "blue"})
    assert (refused.status_code, refused.json()["detail"]) == (
        422,
        "instruction: this model takes none",
    )


def test_models_are_called_by_name(serve: Callable[..., httpx.Client]) -> None:
    client = serve({"one": FakeScorer(name="a"), "two": FakeScorer(name="b")})

    def who(**model: object) -> str:
        return client.post("/v1/rerank", json=PLAIN | model).headers["x-scorer"]

    assert [who(), who(model=None), who(model="default"), who(model="two")] == [
        "one",
        "one",
        "one",
        "two",
    ]
    unknown = {path: client.post(path, json=PLAIN | {"model": "tow"}) for path in FORMS}
    assert {path: answer.status_code for path, answer in unknown.items()} == {
        "/tei/rerank": 422, "/infinity/rerank": 400, "/jina/v1/rerank": 404,
        "/cohere/v1/rerank": 404, "/cohere/v2/rerank": 404, "/vllm/rerank": 404,
        "/nim/v1/ranking": 422, "/v1/rerank": 404, "/rerank": 404,
    }  # fmt: skip
    assert "'tow' is not served; there are one, two" in unknown["/v1/rerank"].text
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["one", "two"]


def test_one_model_answers_to_any_name_unless_names_are_strict(
    serve: Callable[..., httpx.Client], client: httpx.Client
) -> None:
    body = PLAIN | {"model": "rerank-v3.5"}

    assert _ask(client, "/infinity/rerank", body)["model"] == "fake"
    assert serve(strict_models=True).post("/v2/rerank", json=body).status_code == 404
