"""The chat template of a checkpoint as its family: what sentence-transformers makes of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rerank_plugins import Reranker
from rerank_plugins.errors import ModelLoadError
from tests.language_cards import (
    QWEN_TEMPLATE,
    ModelCard,
    sentence_transformers_logits,
    write_chat_template,
    write_sentence_transformers,
)
from tests.tiny_language_models import make_language_pairs, write_language_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOLERANCE = 1e-4
PAIRS = [pair for pair in make_language_pairs(60, longest=90) if all(map(str.strip, pair))]
EXACT: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "normalizer": None,
    "activation": "logit",
}
OWN = (
    "{% for message in messages if message.role == 'system' %}"
    "<|im_start|>system\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>user\nQuery: {{ messages | selectattr('role', 'eq', 'query') "
    "| map(attribute='content') | first }}\n\nDocument: {{ messages "
    "| selectattr('role', 'eq', 'document') | map(attribute='content') | first }}\n"
    "Relevant?<|im_end|>\n<|im_start|>assistant\n"
)


def scores(folder: Path, **settings: Any) -> np.ndarray:
    call = {"instruction": settings.pop("told", None)}
    with Reranker(str(folder), **{**EXACT, **settings}) as reranker:
        return np.array(reranker.score(PAIRS, **call))


def write(folder: Path, name: str, template: str, **answers: Any) -> Path:
    write_language_model(folder, name)
    write_chat_template(folder, template)
    write_sentence_transformers(folder, **answers)
    return folder


def test_a_template_that_renders_the_card_gives_the_logits_of_the_card(tmp_path: Path) -> None:
    folder = write(tmp_path, "qwen3", QWEN_TEMPLATE)
    expected = ModelCard(folder, "qwen3-reranker", max_length=400).logits(PAIRS)

    found = scores(folder, family="chat-template")

    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("told", [None, "find the river"])
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_any_template_gives_the_logits_of_sentence_transformers(
    name: str, told: str | None, tmp_path: Path
) -> None:
    """Taken by itself where no row knows the model; blank lines, an ending, a system message."""
    folder = write(tmp_path, name, OWN)
    expected = sentence_transformers_logits(folder, PAIRS, prompt=told)

    found = scores(folder, told=told, **({"family": "chat-template"} if name == "qwen3" else {}))

    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_known_family_is_asked_as_its_card_asks_unless_the_template_is_named(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path, "qwen3", QWEN_TEMPLATE.replace("\\n<Query>", "\\n\\n<Query>"))

    by_itself, named = scores(folder), scores(folder, family="chat-template")

    card = ModelCard(folder, "qwen3-reranker", max_length=400).logits(PAIRS)
    np.testing.assert_allclose(by_itself, card, rtol=0, atol=TOLERANCE)
    assert np.abs(named - by_itself).max() > 0.05


def test_one_answer_gives_its_own_logit(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama", OWN, true="Yes", false=None)

    found = scores(folder)

    expected = sentence_transformers_logits(folder, PAIRS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (drop("chat_template.jinja"), "it has no chat template: looked for chat_template.jinja"),
        (drop("modules.json"), "nothing says which tokens answer .*LogitScore"),
        (lambda folder: (folder / "modules.json").write_text("{"), "modules.json cannot be read"),
        (lambda folder: write_chat_template(folder, "{% if %}"), "cannot be rendered"),
        (lambda folder: write_chat_template(folder, "{{ raise_exception('no') }}"), "no"),
        (lambda folder: write_chat_template(folder, "Hello"), "shows a query 0 times"),
        (
            lambda folder: write_chat_template(
                folder,
                "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
                "{% else %}b{% endif %} {{ messages[-2].content }} {{ messages[-1].content }}",
            ),
            None,
        ),
        (
            lambda folder: write_chat_template(
                folder,
                "{% if messages[0].role == 'system' %}Do {{ messages[0].content }}"
                "{% else %}Be{% endif %} {{ messages[-2].content }} {{ messages[-1].content }}",
            ),
            "says other things where there is no system message",
        ),
    ],
)
def test_a_template_that_cannot_be_used_says_why(
    spoil: Callable[[Path], object], expected: str | None, tmp_path: Path
) -> None:
    folder = write(tmp_path, "llama", OWN)
    spoil(folder)
    reranker = Reranker(str(folder), family="chat-template", **EXACT)

    with reranker:
        if expected is None:
            reranker.warmup()
            return
        with pytest.raises(ModelLoadError, match=expected):
            reranker.warmup()


def test_what_a_template_is_given_cannot_reach_beyond_it(tmp_path: Path) -> None:
    attack = "{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}"
    folder = write(tmp_path, "llama", attack)

    with (
        Reranker(str(folder), family="chat-template", **EXACT) as reranker,
        pytest.raises(ModelLoadError, match=r"cannot be rendered: SecurityError"),
    ):
        reranker.warmup()


def test_the_answers_of_a_model_without_any_are_those_of_its_row(tmp_path: Path) -> None:
    folder = write(tmp_path, "qwen3", QWEN_TEMPLATE)
    with_ids = scores(folder, family="chat-template")
    (folder / "modules.json").write_text(json.dumps([]))

    found = scores(folder, family="chat-template")
    np.testing.assert_allclose(found, with_ids, rtol=0, atol=1e-5)


def test_the_prompt_the_options_and_the_activation_that_were_saved_are_taken(
    tmp_path: Path,
) -> None:
    """All of it is what sentence-transformers does with the checkpoint."""
    ending = "{% if add_generation_prompt %}The answer is:{% endif %}"
    folder = write(tmp_path, "llama", OWN + ending, prompts={"default": "find the river"})
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    settings["processing_kwargs"] = {"chat_template": {"add_generation_prompt": True}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    expected = sentence_transformers_logits(folder, PAIRS)

    found = scores(folder, activation="auto")  # saved as Identity

    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_template_that_is_no_text_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama", OWN)
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")

    with Reranker(str(folder), **EXACT) as reranker, pytest.raises(ModelLoadError, match="UTF-8"):
        reranker.warmup()
