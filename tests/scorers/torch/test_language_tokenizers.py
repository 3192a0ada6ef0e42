"""The tokenizers of the tests' language models have the parts and marks of the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.language_cards import QWEN_SUFFIX
from tests.tiny_tokenizers import (
    ANSWERS,
    QWEN_ADDED,
    QWEN_SPECIAL,
    gemma_like,
    qwen_like,
    real_qwen_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer


def test_the_vocabulary_of_the_data_folder_is_that_of_qwen3() -> None:
    tokenizer = real_qwen_tokenizer()

    assert tokenizer.get_vocab_size() == 151_669
    assert (tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")) == (9693, 2152)
    assert (tokenizer.token_to_id("0"), tokenizer.token_to_id("1")) == (15, 16)
    suffix = tokenizer.encode(QWEN_SUFFIX).ids
    assert suffix == [151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]


@pytest.mark.parametrize("make", [qwen_like, real_qwen_tokenizer])
def test_a_document_parts_from_its_prompt_before_the_space_and_not_behind_it(
    make: Callable[[], Tokenizer],
) -> None:
    tokenizer = make()

    def ids(*texts: str) -> list[int]:
        return [token for text in texts for token in tokenizer.encode(text).ids]

    whole = ids("<Query>: a\n<Document>: the cat")

    assert ids("<Query>: a\n<Document>:", " the cat") == whole
    assert ids("<Query>: a\n<Document>: ", "the cat") != whole


@pytest.mark.parametrize("make", [qwen_like, real_qwen_tokenizer])
def test_the_added_tokens_are_those_of_qwen_marked_as_there(make: Callable[[], Tokenizer]) -> None:
    added = make().get_added_tokens_decoder().values()

    assert [token.content for token in added if token.special] == list(QWEN_SPECIAL)
    assert [token.content for token in added if not token.special] == list(QWEN_ADDED)


@pytest.mark.parametrize("make", [qwen_like, real_qwen_tokenizer, gemma_like])
def test_every_answer_is_one_token(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()

    for answer in ANSWERS:
        assert tokenizer.encode(answer, add_special_tokens=False).tokens == [answer]


@pytest.mark.parametrize("make", [qwen_like, real_qwen_tokenizer, gemma_like])
def test_texts_come_back_from_their_tokens(make: Callable[[], Tokenizer]) -> None:
    """Byte by byte where need be, and no special token is added but Gemma's first."""
    tokenizer = make()
    for text in ("the cat\n", "的猫 \U0001f600", "  a\u00a0b", "<0x41>"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
