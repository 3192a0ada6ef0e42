"""What the page asks of the models, and what comes back."""

from __future__ import annotations

import base64
import json
import threading
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.config import RerankConfig
from rerank_plugins.errors import InputError, ModelLoadError
from rerank_plugins.events import RequestEvent
from rerank_plugins.playground.asking import (
    MOST_BYTES,
    MOST_DOCUMENTS,
    LastRequest,
    Playground,
    Question,
)
from rerank_plugins.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    Open = Callable[..., Playground]

TEXT = "fine weather\n\na red fox\n\nblue sky, red sun"


def _question(**changes: object) -> Question:
    return Question(**{"query": "red fox", "text": TEXT, "models": ("one",)} | changes)


def test_models_answer_in_the_order_in_which_they_were_chosen(open_playground: Open) -> None:
    playground = open_playground()

    found = playground.ask(_question(models=("two", "one")))

    assert [answer.model for answer in found.answers] == ["two", "one"]
    for answer in found.answers:
        assert answer.ranking is not None
        assert [document.index for document in answer.ranking] == [1, 2, 0]
    assert [document.text for document in found.documents] == TEXT.split("\n\n")


def test_an_answer_tells_the_time_of_its_own_call(open_playground: Open) -> None:
    playground = open_playground()

    first, second = playground.ask(_question(models=("one", "two"))).answers
    again = playground.ask(_question()).answers[0]

    assert first.event is not None
    assert (first.event.model, first.event.pairs, first.event.cached) == ("one", 3, 0)
    assert second.event is not None
    assert second.event.model == "two"
    assert again.event is not None
    assert again.event.cached == 3


def test_calls_at_the_same_time_hear_each_of_its_own() -> None:
    last = LastRequest()
    both_were_told = threading.Barrier(2, timeout=30)
    heard: dict[str, object] = {}

    def call(model: str) -> None:
        last.on_request(RequestEvent(model, model, "ok", 1, 0, 1, 0.0, 0.0))
        both_were_told.wait()
        heard[model] = last.take()
        heard[f"{model} again"] = last.take()

    threads = [threading.Thread(target=call, args=(model,)) for model in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {name: getattr(event, "model", None) for name, event in heard.items()} == {
        "one": "one",
        "one again": None,
        "two": "two",
        "two again": None,
    }


def test_all_documents_are_ranked_whatever_top_n_shows(open_playground: Open) -> None:
    found = open_playground().ask(_question(top_n=1))

    assert found.top_n == 1
    assert len(found.answers[0].ranking or ()) == 3


def test_a_model_that_fails_does_not_silence_the_other(open_playground: Open) -> None:
    playground = open_playground(scorers={"two": FakeScorer(name="two", poison="sun")})

    good, bad = playground.ask(_question(models=("one", "two"))).answers

    assert good.ranking is not None
    assert bad.ranking is None
    assert "documents[2]" in bad.problem


@pytest.mark.parametrize("models", [("three",), ("one", "https://example.org/x"), ()])
def test_only_the_models_of_the_command_line_are_asked(
    open_playground: Open, models: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match="choose a model of this page: one, two"):
        open_playground().ask(_question(models=models))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": "  "}, "the query is blank"),
        ({"query": "\ud800"}, "the query holds the lone surrogate"),
        ({"text": "\ud800"}, "the text of the documents holds the lone surrogate"),
        ({"text": "\n \n"}, "there are no documents"),
        ({"text": "x" * (MOST_BYTES + 1)}, "more than this page takes, 4,000,000 bytes"),
        ({"text": "x\n" * (MOST_DOCUMENTS + 1), "split": "line"}, "1,001 documents are more"),
        ({"files": (("a.txt", b"\xff"),)}, "a.txt: not UTF-8"),
        ({"files": (("a.jsonl", b'{"body": "x"}'),)}, "its fields are body$"),
        ({"files": (("a.txt", b"x" * MOST_BYTES), ("b.txt", b"x"))}, "more than this page takes"),
        ({"top_n": 0}, "top_n must be an int of at least 1"),
        ({"max_candidates": -1}, "max_candidates must be an int"),
        ({"duplicates": "perhaps"}, "duplicates must be"),
    ],
)
def test_what_cannot_be_ranked_is_named(
    open_playground: Open, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_playground().ask(_question(**changes))


def test_settings_of_a_call_reach_the_models(open_playground: Open) -> None:
    playground = open_playground()
    text = "a red fox\n\na red fox\n\nfine weather"

    dropped = playground.ask(_question(text=text, duplicates="drop")).answers[0].ranking
    picked = playground.ask(_question(text=text, max_candidates=1)).answers[0].ranking

    assert dropped is not None
    assert [(d.index, d.reason) for d in dropped.dropped] == [(1, "duplicate")]
    assert picked is not None
    assert "max_candidates" in {d.reason for d in picked.dropped}


def test_an_instruction_is_told_to_those_who_take_one(open_playground: Open) -> None:
    told = FakeScorer(name="two", instruction="find facts")
    playground = open_playground(scorers={"two": told})
    assert playground.takes_instruction

    first, second = playground.ask(
        _question(models=("one", "two"), instruction="find animals")
    ).answers

    assert (first.untold, second.untold) == (True, False)
    assert "find animals: red fox" in {query for query, _ in told.pairs_scored}


def test_nobody_takes_an_instruction_here(open_playground: Open) -> None:
    assert not open_playground().takes_instruction


def test_files_are_read_in_place_of_the_text(open_playground: Open) -> None:
    files = (("a.jsonl", b'{"text": "red fox", "id": 7}\n"sky"\n'), ("b.txt", b"one\n\ntwo"))

    found = open_playground().ask(_question(files=files))

    assert [(d.text, d.source) for d in found.documents] == [
        ("red fox", "7"),
        ("sky", "a.jsonl:2"),
        ("one", "b.txt:1"),
        ("two", "b.txt:3"),
    ]


def test_a_text_is_split_as_asked(open_playground: Open) -> None:
    found = open_playground().ask(_question(text="one\ntwo\n\nthree", split="line"))

    assert [document.text for document in found.documents] == ["one", "two", "three"]


def test_languages_of_documents_are_told(open_playground: Open) -> None:
    found = open_playground().ask(_question(text="日本語のテキストです\n\nwhere is the red fox?"))

    assert found.languages == ("ja", "en")


def test_a_model_that_does_not_open_closes_the_others(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    opened: list[FakeScorer] = []

    def open_it(config: RerankConfig) -> FakeScorer:
        if config.model == "bad":
            raise ModelLoadError("bad", "it is not there")
        opened.append(FakeScorer(name=config.model))
        return opened[-1]

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_it)

    with (
        pytest.raises(ModelLoadError, match="it is not there"),
        Playground(RerankConfig(queue_tokens=3_999_997), ["good", "bad"]),
    ):
        pass

    assert [scorer.closed for scorer in opened] == [True]


def test_the_form_packs_and_unpacks(open_playground: Open) -> None:
    pytest.importorskip("gradio")
    from rerank_plugins.playground.page import Form

    form = Form(open_playground())
    packed = json.dumps([{"name": "a.txt", "data": base64.b64encode(b"a red fox").decode()}])

    status, result = form("red fox", "text", "line", packed, "one", "two", " 1 ", "", "drop", "")

    assert "1 document ranked by one and two." in status
    assert "a red fox" in result


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, None, "the query is blank"),
        (3, "{", "the files did not come whole"),
        (3, '[{"name": "a.txt", "data": "/etc/passwd!"}]', "the files did not come whole"),
        (3, "[" * 100_000, "the files did not come whole"),
        (4, "/etc/passwd", "choose a model of this page"),
        (6, "-1", "top_n must be a whole number, or blank, got &#x27;-1&#x27;"),
        (6, "٣", "top_n must be a whole number"),
        (6, "9" * 5000, "top_n must be a whole number"),
        (7, "<b>", "got &#x27;&lt;b&gt;&#x27;"),
    ],
)
def test_the_form_says_what_is_wrong(
    open_playground: Open, place: int, value: str | None, message: str
) -> None:
    pytest.importorskip("gradio")
    from rerank_plugins.playground.page import Form

    asked: list[str | None] = ["red fox", TEXT, "paragraph", "", "one", "", "", "", "", ""]
    asked[place] = value

    status, result = Form(open_playground())(*asked)  # type: ignore[arg-type]

    assert "Nothing was ranked." in status
    assert message in result
    assert 'role="alert"' in result


def test_what_nobody_expected_is_logged_without_its_words(
    open_playground: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("gradio")
    from rerank_plugins.playground.page import answer

    def fail(self: Playground, question: Question) -> None:
        raise RuntimeError(f"secret {question.query}")

    monkeypatch.setattr(Playground, "ask", fail)

    _, result = answer(open_playground(), _question(query="private words"))

    assert "RuntimeError" in caplog.text
    assert "test_asking" in caplog.text
    for told in (result, caplog.text):
        assert "secret private" not in told
        assert "private words" not in told


def test_the_key_and_what_belongs_to_it_go_to_the_configured_model_alone(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    opened: dict[str, RerankConfig] = {}

    def open_fake(config: RerankConfig) -> FakeScorer:
        opened[config.model] = config
        return FakeScorer(name=config.model)

    monkeypatch.setattr("rerank_plugins.registry.open_scorer", open_fake)
    ours, other = "https://ours.invalid", "https://other.invalid"
    config = RerankConfig(model=ours, dialect="vllm", remote_model="acme/ranker", api_key="sesame")

    with Playground(config, (ours, other, "lexical")) as playground:
        assert playground.names == [ours, other, "lexical"]

    assert opened[ours].api_key is not None
    assert opened[ours].api_key.get_secret_value() == "sesame"
    assert opened[ours].remote_model == "acme/ranker"
    for name in (other, "lexical"):
        assert opened[name].api_key is None
        assert opened[name].remote_model is None
        assert opened[name].dialect == "auto"


def test_the_page_says_where_texts_are_sent(open_playground: Open) -> None:
    pytest.importorskip("gradio")
    from rerank_plugins.playground.page import header

    here = open_playground("one", "http://127.0.0.1:9", "http://localhost:9")
    away = open_playground("one", "https://a.invalid,https://b.invalid", fallback=["http://c.test"])

    assert here.elsewhere == []
    assert away.elsewhere == ["https://a.invalid", "https://b.invalid", "http://c.test"]
    for playground, words in ((here, "Texts stay on"), (away, "Texts are sent to https://a.")):
        assert words in header(playground.elsewhere)
