"""What is asked before the first pair is, what makes logits the same, and what is kept secret."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from rerank_plugins import (
    ConfigError,
    MissingExtraError,
    ModelLoadError,
    RerankConfig,
    Reranker,
    RerankError,
    ScoringError,
)
from rerank_plugins.config import ENV_PREFIX
from tests.loopback_rerankers import Stall, answering, status

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.loopback_rerankers import RerankServer

    Connect = Callable[..., Reranker]
    Serve = Callable[..., RerankServer]

KEY = "sk-very-secret-0815"
ADDRESS = "http://gpu-1:8000"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "http://user:hunter2@gpu:8000"}, "holds a user or password"),
        ({"model": "http://gpu:8000?key=hunter2"}, 'after its path, with "\\?"'),
        ({"model": "http://gpu:8000#top"}, "after its path"),
        ({"model": "http://"}, "expected http://HOST:PORT"),
        ({"model": "http://:8000"}, "names no host"),
        ({"model": "http://gpu:8000/v1/rerank"}, "that of an endpoint"),
        ({"model": "http://gpu:99999"}, "cannot be read"),
        ({"model": "http://gpu\x01:8000"}, "cannot be seen"),
        ({"model": "http://gpu 1:8000"}, "holds a blank"),
        ({"model": "http://gpu:8000,owner/model"}, "all of its list are.*'owner/model'"),
        ({"model": "http://gpu:8000,http://gpu:8000/"}, "stands twice"),
        ({"model": "owner/model", "backend": "remote"}, "model must be its address"),
        ({"model": ADDRESS, "backend": "torch"}, "runs a model here, but model is an address"),
        ({"model": ADDRESS, "max_length": 512}, "max_length: the server decides it"),
        ({"model": ADDRESS, "device": "cuda"}, "device: the server decides it"),
        ({"model": ADDRESS, "long_documents": "window"}, "long_documents: the server decides it"),
        ({"model": ADDRESS, "dialect": "cohere"}, "needs remote_model"),
        ({"model": ADDRESS, "remote_model": ""}, "remote_model"),
        ({"model": ADDRESS, "dialect": "grpc"}, "dialect"),
        ({"fallback": ["http://user:hunter2@gpu:8000"]}, "holds a user or password"),
        ({"language_models": {"zh": "http://u:hunter2@gpu"}}, "holds a user or password"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RerankConfig(**settings)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel", 815])
def test_a_key_that_fits_into_no_header_is_refused_and_not_shown(key: object) -> None:
    with pytest.raises(ConfigError, match="api_key") as caught:
        RerankConfig(model=ADDRESS, api_key=key)

    assert not str(key) or str(key) not in str(caught.value).replace("two words", "")


def test_the_key_is_sent_and_shown_nowhere(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve("infinity", key=KEY)
    reranker = connect(server, api_key=KEY)

    reranker.rank("the river", ["a"])
    server.always = status(400, {"error": {"message": f"not with {KEY}"}})
    with pytest.raises(ScoringError) as caught:
        reranker.rank("the river", ["b"])

    assert {each.headers["authorization"] for each in server.requests} == {f"Bearer {KEY}"}
    config = reranker.config
    shown = (repr(config), repr(reranker), str(reranker.stats()), caplog.text, str(caught.value))
    assert not [each for each in shown if KEY in each]
    # Not even as stars, which would be read back as the key.
    assert "api_key" not in config.model_dump()
    assert "api_key" not in json.loads(config.model_dump_json(exclude={"observers"}))


@pytest.mark.parametrize("proxy", [None, "foo://proxy"])
def test_tracebacks_with_local_variables_do_not_show_the_key(
    proxy: str | None, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxy is not None:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    reranker = connect("https://gpu.invalid", api_key=SecretStr(KEY))

    with pytest.raises(ModelLoadError) as caught:
        reranker.warmup()

    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert not [line for line in shown.format() if KEY in line]


def test_the_key_travels_where_settings_do() -> None:
    config = RerankConfig(model=ADDRESS, api_key=KEY)

    again = pickle.loads(pickle.dumps(config))

    assert again == config
    assert again.api_key is not None
    assert again.api_key.get_secret_value() == KEY
    read = RerankConfig.from_env({f"{ENV_PREFIX}MODEL": ADDRESS, f"{ENV_PREFIX}API_KEY": KEY})
    assert read == config


def test_words_that_quote_a_document_are_not_repeated(serve: Serve, connect: Connect) -> None:
    server = serve("infinity")
    document = "the patient's name is Erika Mustermann, born in 1964"
    server.always = status(422, {"error": {"message": f"cannot read: {document}"}})

    with pytest.raises(ScoringError, match=r"answered 422$") as caught:
        connect(server).rank("the river", [document])

    assert "Erika" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "document"),
    [
        (
            'bad token near "name is Erika Mustermann, born"',
            "Patient 4711, her name is Erika Mustermann, born in 1964",
        ),
        ("cannot read: a line of Erika Mustermann", "a\nline of Erika Mustermann"),
    ],
)
def test_words_that_quote_a_part_of_a_document_are_not_repeated(
    message: str, document: str, serve: Serve, connect: Connect
) -> None:
    server = serve("infinity")
    server.always = status(422, {"error": {"message": message}})

    with pytest.raises(ScoringError, match=r"answered 422$"):
        connect(server).rank("the river", [document])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "foo://user:hunter2@proxy"),
        ("HTTPS_PROXY", "http://user:hunter2#x@proxy"),
        ("NO_PROXY", "[::1"),
    ],
)
def test_an_environment_that_cannot_be_used_is_named(
    name: str, value: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("NO_PROXY", "no_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)

    with pytest.raises(ModelLoadError, match="that variables name") as caught:
        connect("https://gpu.invalid").warmup()

    assert "hunter2" not in str(caught.value)


def test_a_host_that_is_none_is_an_error_of_ours(connect: Connect) -> None:
    with pytest.raises(ModelLoadError, match="no address that can be asked"):
        connect("http://xn--a:80").warmup()


def test_a_key_in_plain_text_over_the_network_is_warned_of(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelLoadError):
        # A name that no resolver knows; nothing is sent.
        connect("HTTP://gpu.invalid:8000", api_key=KEY).warmup()
    assert "api_key goes to HTTP://gpu.invalid:8000 unencrypted" in caplog.text
    caplog.clear()

    connect(serve("infinity", key=KEY), api_key=KEY).warmup()
    assert "unencrypted" not in caplog.text


def test_other_models_are_not_told_the_key(serve: Serve, connect: Connect) -> None:
    first, other = serve("infinity", key=KEY), serve("infinity")
    reranker = connect(first, api_key=KEY, on_error="fallback", fallback=[other.url])
    reranker.warmup()
    first.always = status(400)

    assert reranker.rank("the river", ["a"]).scorer == "remote/acme/ranker"

    assert len(other.asked) == 1
    assert not [each for each in other.requests if "authorization" in each.headers]


@pytest.mark.parametrize("code", [401, 403])
def test_a_server_that_lets_nobody_in_says_so_at_the_opening(
    code: int, serve: Serve, connect: Connect
) -> None:
    server = serve("tei", key=KEY)

    with pytest.raises(ModelLoadError, match="401: it wants an api_key"):
        connect(server).warmup()
    with pytest.raises(ModelLoadError, match="401: it wants another api_key"):
        connect(server, api_key=f"{code}").warmup()


def test_a_key_that_expires_is_an_error_that_is_not_retried(serve: Serve, connect: Connect) -> None:
    server = serve("tei", key=KEY)
    reranker = connect(server, api_key=KEY)
    reranker.warmup()
    asked = len(server.asked)
    server.key = "another"

    with pytest.raises(ScoringError, match="it wants another api_key") as caught:
        reranker.rank("the river", ["a", "b"])

    assert not caught.value.retryable
    assert len(server.asked) == asked + 1


def test_the_same_model_elsewhere_has_the_same_identity(serve: Serve) -> None:
    from rerank_plugins.scorers import open_scorer

    servers = [serve("tei"), serve("tei"), serve("tei", info={"max_input_length": 256})]
    servers += [serve("vllm"), serve("tei", model="acme/another")]
    scorers = [open_scorer(RerankConfig(model=server.url)) for server in servers]
    for scorer in scorers:
        scorer.close()

    first, same, *others = [scorer.identity for scorer in scorers]
    assert same == first
    assert len({first, *others}) == 4
    assert "127.0.0.1" not in first
    assert "c0ffee" in first


def test_an_embedding_server_is_no_reranker(serve: Serve, connect: Connect) -> None:
    server = serve("tei", info={"model_type": {"embedding": {"pooling": "cls"}}})

    with pytest.raises(ModelLoadError, match=r"serves no reranker but acme/ranker \(embedding\)"):
        connect(server).warmup()


def test_a_server_that_says_nothing_has_to_be_named(serve: Serve, connect: Connect) -> None:
    server = serve("jina")

    with pytest.raises(ModelLoadError, match="does not say what it is; set dialect"):
        connect(server).warmup()


def test_a_gateway_that_lets_requests_alone_through_is_told_the_model(
    serve: Serve, connect: Connect
) -> None:
    # It knows no /info and no /v1/models.
    server = serve("jina")

    reranker = connect(server, dialect="vllm", remote_model="acme/ranker")

    assert len(reranker.rank("the river", ["a"])) == 1
    assert reranker.rank("the river", ["a"]).scorer == "remote/acme/ranker"


def test_a_prefix_of_the_address_is_kept(serve: Serve, connect: Connect) -> None:
    server = serve("infinity")

    with pytest.raises(ModelLoadError):
        connect(f"{server.url}/team/ranker/").warmup()

    assert {each.path for each in server.requests} == {
        "/team/ranker/info",
        "/team/ranker/models",
        "/team/ranker/v1/models",
    }


@pytest.mark.parametrize("body", [[], {}, {"data": 3}, {"data": [{"id": 7}]}, {"model_id": 7}, "x"])
def test_what_says_nonsense_of_itself_is_not_recognised(
    body: object, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import loopback_rerankers

    known = dict.fromkeys(("/info", "/models", "/v1/models"), body)
    monkeypatch.setattr(loopback_rerankers, "introductions", lambda _: known)

    with pytest.raises(ModelLoadError, match="set dialect"):
        connect(serve("infinity")).warmup()
    with pytest.raises(ModelLoadError):
        connect(serve("infinity"), dialect="infinity").warmup()
    with pytest.raises(ModelLoadError):
        connect(serve("vllm"), dialect="vllm").warmup()
    with pytest.raises(ModelLoadError):
        connect(serve("tei"), dialect="tei").warmup()


def test_the_environments_proxy_is_not_asked_for_what_is_here(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    assert len(connect(serve("infinity")).rank("the river", ["a"])) == 1


def test_the_environments_proxy_is_asked_for_what_is_elsewhere(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve("infinity")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)

    with pytest.raises(RerankError):
        connect("http://gpu.invalid:8000").warmup()

    assert proxy.requests[0].path == "http://gpu.invalid:8000/info"


def test_without_httpx_the_extra_is_named(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name == "httpx":
            raise ModuleNotFoundError(name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)

    with pytest.raises(MissingExtraError, match=r'pip install "rerank-plugins\[remote\]"'):
        connect(ADDRESS).warmup()


def test_the_cache_the_doors_and_warming_up_work_as_ever(serve: Serve, connect: Connect) -> None:
    from rerank_plugins.langchain import RerankCompressor
    from rerank_plugins.llama_index import RerankPostprocessor

    pytest.importorskip("langchain_core")
    server = serve("infinity")
    reranker = connect(server, normalizer="default")
    first = reranker.rank("the  river", ["a river", "a  river", "the sea"])
    asked = len(server.asked)

    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    settings: dict[str, Any] = {"language_detector": None}
    found = RerankCompressor(model=server.url, **settings).compress_documents(
        [Document("the sea"), Document("a river")], "the river"
    )
    nodes = RerankPostprocessor(model=server.url, **settings).postprocess_nodes(
        [NodeWithScore(node=TextNode(text=text)) for text in ("the sea", "a river")],
        query_str="the river",
    )

    # The doors share the engine and its cache; normalising made one text of two.
    assert len(server.asked) == asked
    assert sorted(server.asked[0].body["documents"]) == ["a river", "the sea"]
    assert found[0].metadata["reranked_by"] == "remote/acme/ranker"
    assert found[0].metadata["relevance_score"] == first[0].score
    assert nodes[0].score == first[0].score


def test_the_command_line_takes_an_address(
    serve: Serve, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from rerank_plugins.cli import main

    server = serve("tei")
    file = tmp_path / "texts.txt"
    file.write_text("a dog\n\nthe river and the sea\n")

    assert main(["rank", "where is the river", str(file), "--model", server.url, "--json"]) == 0
    printed = capsys.readouterr().out
    assert "remote/acme/ranker" in printed
    assert main(["info", server.url, "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]

    assert model["backend"] == {"value": "remote", "why": "the model is an address"}
    assert model["dialect"]["value"] == "tei"
    assert model["scorer"] == "remote/acme/ranker"
    assert model["activation"] == "sigmoid"
    assert model["problem"] is None
    assert model["memory"] is None


def test_info_says_what_is_wrong_with_a_server(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    from rerank_plugins.cli import main

    assert main(["info", "http://127.0.0.1:9"]) == 0
    assert "cannot be asked" in capsys.readouterr().out


def test_a_server_that_stalls_at_the_opening_is_given_up(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank_plugins.scorers.remote import opening
    from tests import loopback_rerankers

    stall = Stall()
    monkeypatch.setattr(opening, "INTRODUCTION_S", 0.3)
    monkeypatch.setattr(
        loopback_rerankers, "introductions", lambda _: (stall.over.wait(20) and {}) or {}
    )

    with pytest.raises(ModelLoadError, match=r"no answer within 0\.3 s"):
        connect(serve("tei")).warmup()
    stall.over.set()


def test_a_wrong_answer_names_the_address_of_the_one_that_gave_it(
    serve: Serve, connect: Connect
) -> None:
    right, wrong = serve("infinity"), serve("infinity")
    reranker = connect(right, wrong)
    reranker.warmup()
    wrong.always = answering({"results": "none"})

    errors = []
    for n in range(4):
        try:
            reranker.rank(f"query {n}", ["a"])
        except ScoringError as exc:
            errors.append(str(exc))

    # Twice in a row, and it is let rest.
    assert len(errors) == 2
    assert all(wrong.url in each for each in errors)
