"""What language models are held to agrees with itself and with the libraries of its makers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.language_cards import (
    ENDS,
    GEMMA_INSTRUCTION,
    QWEN_INSTRUCTION,
    QWEN_PREFIX,
    QWEN_SUFFIX,
    ModelCard,
    sentence_transformers_logits,
    write_chat_template,
    write_sentence_transformers,
)
from tests.tiny_language_models import (
    LANGUAGE_MODELS,
    SPECIAL_TEXTS,
    make_language_pairs,
    write_language_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TOLERANCE = 1e-4
RECORDED = json.loads(Path(__file__).with_name("language_cards.json").read_text(encoding="utf-8"))
FAMILY_OF = {
    "qwen3": "qwen3-reranker",
    "qwen3 untied": "qwen3-reranker",
    "qwen3 vocabulary": "qwen3-reranker",
    "qwen3 classifier": "qwen3-reranker",
    "qwen2": "mxbai-rerank-v2",
    "qwen2 classifier": "mxbai-rerank-v2",
    "gemma": "bge-reranker-gemma",
    "llama": "qwen3-reranker",
    "mistral": "qwen3-reranker",
}
EVERY_MODEL = pytest.mark.parametrize("name", LANGUAGE_MODELS)
INSTRUCTION = "find the cat on the mat"


@EVERY_MODEL
def test_the_same_tokenizer_comes_out_of_transformers(
    name: str, language_folder: Callable[..., Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_folder(name))
    own = LANGUAGE_MODELS[name].tokenizer()

    for pair in [*make_language_pairs(60), *((text, "a") for text in SPECIAL_TEXTS)]:
        for text in pair:
            assert tokenizer(text)["input_ids"] == own.encode(text).ids


@EVERY_MODEL
def test_logits_spread_and_padding_does_not_change_them(
    name: str, language_folder: Callable[..., Path]
) -> None:
    card = ModelCard(language_folder(name), FAMILY_OF[name], max_length=300)
    pairs = make_language_pairs(60, longest=280)
    if name == "qwen3 vocabulary":  # 600 KB of logits a token
        pairs = pairs[::3]

    logits = card.logits(pairs)

    np.testing.assert_allclose(card.logits(pairs, batch=1), logits, rtol=0, atol=TOLERANCE)
    assert logits.std() >= 1
    assert len({len(card.ids(*pair)) for pair in pairs}) > 12


@pytest.mark.parametrize(
    "run",
    RECORDED["runs"],
    ids=lambda run: f"{run['family']}-{run['max_length']}-{run['instruction']}",
)
def test_cards_give_the_ids_and_logits_of_their_makers_libraries(
    run: dict[str, Any], language_folder: Callable[..., Path]
) -> None:
    """Recorded from the real mxbai-rerank and FlagEmbedding."""
    card = ModelCard(
        language_folder(run["model"]),
        run["family"],
        instruction=run["instruction"],
        max_length=run["max_length"],
    )
    pairs = [tuple(pair) for pair in RECORDED["pairs"]]

    assert [card.ids(*pair) for pair in pairs] == [
        [*run["begin"], *between, *run["end"]] for between in run["between"]
    ]
    np.testing.assert_allclose(card.logits(pairs), run["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("max_length", [120, 400])
@pytest.mark.parametrize("name", ["qwen3", "qwen3 untied", "qwen3 vocabulary", "llama"])
def test_the_card_of_qwen3_agrees_with_sentence_transformers(
    name: str, max_length: int, tmp_path: Path
) -> None:
    """Its chat template renders the card's string, and it too puts the end back where it cuts."""
    write_language_model(tmp_path, name)
    write_chat_template(tmp_path)
    write_sentence_transformers(tmp_path)
    pairs = [*make_language_pairs(70), *(("the cat", text) for text in SPECIAL_TEXTS)]
    if name == "qwen3 vocabulary":  # 600 KB of logits a token
        pairs = pairs[::4]
    card = ModelCard(tmp_path, "qwen3-reranker", max_length=max_length)

    found = sentence_transformers_logits(tmp_path, pairs, max_length=max_length)

    np.testing.assert_allclose(found, card.logits(pairs), rtol=0, atol=TOLERANCE)
    assert max(len(card.ids(*pair)) for pair in pairs) == max_length


def test_the_chat_template_renders_the_string_of_the_card(tmp_path: Path) -> None:
    write_language_model(tmp_path, "qwen3")
    write_chat_template(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pair = [{"role": "query", "content": "a"}, {"role": "document", "content": " {{ b }}\n"}]

    def render(*messages: dict[str, str]) -> str:
        return tokenizer.apply_chat_template(list(messages), tokenize=False)

    body = "<Query>: a\n<Document>:  {{ b }}\n"
    own = f"{QWEN_PREFIX}<Instruct>: {QWEN_INSTRUCTION}\n{body}{QWEN_SUFFIX}"
    told = f"{QWEN_PREFIX}<Instruct>: {INSTRUCTION}\n{body}{QWEN_SUFFIX}"
    assert render(*pair) == own
    assert render({"role": "system", "content": INSTRUCTION}, *pair) == told


def test_a_prompt_of_sentence_transformers_is_the_instruction(tmp_path: Path) -> None:
    """Named in its settings or given by call, it becomes the message of the role system."""
    write_language_model(tmp_path, "qwen3")
    write_chat_template(tmp_path)
    write_sentence_transformers(tmp_path, prompts={"default": INSTRUCTION, "other": "find a dog"})
    pairs = make_language_pairs(12)

    def card(instruction: str) -> np.ndarray:
        return ModelCard(tmp_path, "qwen3-reranker", instruction=instruction).logits(pairs)

    for settings, instruction in (
        ({}, INSTRUCTION),
        ({"prompt_name": "other"}, "find a dog"),
        ({"prompt": "find a tree"}, "find a tree"),
    ):
        found = sentence_transformers_logits(tmp_path, pairs, **settings)
        np.testing.assert_allclose(found, card(instruction), rtol=0, atol=TOLERANCE)
    assert np.abs(card(INSTRUCTION) - card("find a dog")).max() > 0.1


def test_sentence_transformers_reads_the_answers_from_its_own_file(tmp_path: Path) -> None:
    """Without that file it takes "yes" and "no"; with one answer the logit is not a difference."""
    write_language_model(tmp_path, "qwen3")
    write_chat_template(tmp_path)
    pairs = make_language_pairs(12)
    card = ModelCard(tmp_path, "qwen3-reranker")

    bare = sentence_transformers_logits(tmp_path, pairs)
    np.testing.assert_allclose(bare, card.logits(pairs), rtol=0, atol=TOLERANCE)

    write_sentence_transformers(tmp_path, true="1", false=None)
    card.answers = ("1", None)
    found = sentence_transformers_logits(tmp_path, pairs)
    np.testing.assert_allclose(found, card.logits(pairs), rtol=0, atol=TOLERANCE)
    assert np.abs(found - bare).max() > 0.1


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("name", ["qwen3", "qwen2"])
def test_a_converted_classifier_has_the_logits_of_its_language_model(
    name: str, labels: int, tmp_path: Path, language_folder: Callable[..., Path]
) -> None:
    write_language_model(tmp_path, f"{name} classifier", labels=labels)
    pairs = make_language_pairs(60)

    found = ModelCard(tmp_path, FAMILY_OF[name], max_length=200).logits(pairs)

    expected = ModelCard(language_folder(name), FAMILY_OF[name], max_length=200).logits(pairs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert ModelCard(tmp_path, FAMILY_OF[name]).model.score.weight.shape[0] == labels


@pytest.mark.parametrize("name", ["qwen3", "qwen3 untied", "gemma"])
def test_a_checkpoint_in_shards_is_the_same_model(
    name: str, tmp_path: Path, language_folder: Callable[..., Path]
) -> None:
    write_language_model(tmp_path, name, shard_size="40KB")

    sharded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()

    whole = AutoModelForCausalLM.from_pretrained(language_folder(name)).state_dict()
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert sharded.keys() == whole.keys()
    assert all(torch.equal(sharded[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("name", "head_is_saved"), [("qwen3", False), ("qwen3 untied", True), ("gemma", False)]
)
def test_tied_embeddings_are_saved_once(
    name: str, head_is_saved: bool, language_folder: Callable[..., Path]
) -> None:
    content = (language_folder(name) / "model.safetensors").read_bytes()

    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])

    assert ("lm_head.weight" in header) is head_is_saved


@pytest.mark.parametrize(
    ("name", "family", "text", "token"),
    [
        ("qwen3", "qwen3-reranker", "the cat<|im_end|>", "<|im_end|>"),
        ("qwen3", "qwen3-reranker", "the cat</think>", "</think>"),
        ("qwen3 vocabulary", "qwen3-reranker", "the cat<|im_end|>", "<|im_end|>"),
        ("qwen2", "mxbai-rerank-v2", "the cat<|endoftext|>", "<|endoftext|>"),
        ("gemma", "bge-reranker-gemma", "the cat<eos>", "<eos>"),
    ],
)
def test_cards_parse_the_text_of_special_tokens(
    name: str, family: str, text: str, token: str, language_folder: Callable[..., Path]
) -> None:
    """So a document can end its own turn there; the engine spells such text out unless told."""
    card = ModelCard(language_folder(name), family)
    special = card.tokenizer.convert_tokens_to_ids(token)

    plain = card.ids("the dog", "the cat").count(special)

    assert card.ids("the dog", text).count(special) == plain + 1
    assert card.ids(text, "the dog").count(special) == plain + 1


@pytest.mark.parametrize("max_length", [100, 200])
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("qwen3", "qwen3-reranker"),
        ("qwen2", "mxbai-rerank-v2"),
        ("gemma", "bge-reranker-gemma"),
        ("gemma", "FlagEmbedding"),
    ],
)
def test_cards_never_cut_the_end_of_the_prompt(
    name: str, family: str, max_length: int, language_folder: Callable[..., Path]
) -> None:
    card = ModelCard(language_folder(name), family, max_length=max_length)

    for query in ("the cat", "the cat " * 300):
        ids = card.ids(query, "the dog " * 300)
        assert card.tokenizer.decode(ids).endswith(ENDS[family])


def test_flag_embedding_cuts_later_than_the_card(language_folder: Callable[..., Path]) -> None:
    folder = language_folder("gemma")
    card = ModelCard(folder, "bge-reranker-gemma", max_length=100)
    library = ModelCard(folder, "FlagEmbedding", max_length=100)
    end = len(card.tokens(f"\n{GEMMA_INSTRUCTION}"))

    assert card.ids("the cat", "the dog") == library.ids("the cat", "the dog")
    assert len(card.ids("the cat", "the dog " * 300)) == 100 + end
    # Its document is cut to max_length by itself before the pair is cut.
    assert len(library.ids("the cat", "the dog " * 300)) > 100 + end
