"""Token ids are those of the reference tokenizer, cut by the named rule."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from rerank_plugins.models.encoding import (
    PairEncoder,
    PairTemplate,
    TokenPair,
    cut_longest_first,
    cut_only_second,
)
from rerank_plugins.options import Truncation
from tests.tiny_models import Kind, make_tokenizer

KINDS: tuple[Kind, ...] = ("bert", "xlm-roberta", "roberta")
SPECIAL_TEXTS = ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", "<s>", "</s>", "<pad>", "<mask>")

words = st.sampled_from(
    ["the", "cat", "sats", " ", "  ", "\n", "的", "猫", "[x]", "</", "é", "😀", "!"]
)
texts = st.one_of(
    st.lists(words, max_size=30).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
).filter(lambda text: not any(special in text for special in (*SPECIAL_TEXTS, "<unk>")))
lengths = st.integers(min_value=8, max_value=70)


@cache
def encoder(kind: Kind, max_length: int, truncation: Truncation) -> PairEncoder:
    return PairEncoder(make_tokenizer(kind), max_length=max_length, truncation=truncation)


@cache
def tokenizer_of(kind: Kind) -> Tokenizer:
    return make_tokenizer(kind)


def encode(
    kind: Kind,
    query: str,
    document: str,
    max_length: int,
    truncation: Truncation = Truncation.LONGEST_FIRST,
) -> TokenPair:
    (pair,) = encoder(kind, max_length, truncation).encode(query, [document])
    return pair


@pytest.mark.parametrize("kind", KINDS)
@given(query=texts, document=texts, max_length=lengths)
def test_ids_equal_the_tokenizers_own_pair_encoding(
    kind: Kind, query: str, document: str, max_length: int
) -> None:
    reference = tokenizer_of(kind)
    reference.enable_truncation(max_length, strategy="longest_first")
    expected = reference.encode(query, document)
    reference.no_truncation()

    pair = encode(kind, query, document, max_length)

    assert pair.ids.tolist() == expected.ids
    assert pair.segments is not None
    assert pair.segments.tolist() == expected.type_ids
    whole = reference.encode(document, add_special_tokens=False)
    assert pair.truncated == (expected.sequence_ids.count(1) < len(whole.ids))


@given(query=st.integers(0, 200), document=st.integers(0, 200), room=st.integers(0, 150))
def test_longest_first_fills_the_room_and_cuts_the_longer_text(
    query: int, document: int, room: int
) -> None:
    kept_query, kept_document = cut_longest_first(query, document, room)

    assert kept_query + kept_document == min(query + document, room)
    assert kept_query <= query
    assert kept_document <= document
    if kept_query < query and kept_document < document:
        assert abs(kept_query - kept_document) <= 1


def as_flag_embedding(kind: Kind, query: str, document: str, max_length: int) -> list[int]:
    """FlagEmbedding's `compute_score_single_gpu`, by the letter, to its ids.

    FlagEmbedding/inference/reranker/encoder_only/base.py, with `prepare_for_model` of transformers
    4: truncation="only_second".
    """
    tokenizer = tokenizer_of(kind)
    query_ids = tokenizer.encode(query, add_special_tokens=False).ids[: max_length * 3 // 4]
    document_ids = tokenizer.encode(document, add_special_tokens=False).ids[:max_length]
    over = len(query_ids) + len(document_ids) + (3 if kind == "bert" else 4) - max_length
    if over > 0:
        assert len(document_ids) > over
        document_ids = document_ids[:-over]
    if kind == "bert":
        start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
        return [start, *query_ids, end, *document_ids, end]
    return [0, *query_ids, 2, 2, *document_ids, 2]


@pytest.mark.parametrize("kind", KINDS)
@given(query=texts, document=texts, max_length=st.integers(min_value=17, max_value=70))
def test_only_second_equals_flag_embedding(
    kind: Kind, query: str, document: str, max_length: int
) -> None:
    expected = as_flag_embedding(kind, query, document, max_length)

    pair = encode(kind, query, document, max_length, Truncation.ONLY_SECOND)

    assert pair.ids.tolist() == expected


@given(query=st.integers(0, 200), document=st.integers(0, 200), max_length=st.integers(8, 80))
def test_only_second_always_fits(query: int, document: int, max_length: int) -> None:
    room = max_length - 4
    kept_query, kept_document = cut_only_second(query, document, room, max_length)

    assert 0 <= kept_query + kept_document <= room
    if query <= max_length * 3 // 4 and query + document <= room:
        assert (kept_query, kept_document) == (query, document)


@pytest.mark.parametrize("cut_left", [False, True])
@pytest.mark.parametrize("truncation", Truncation)
@pytest.mark.parametrize("kind", KINDS)
def test_a_query_that_fills_the_pair_alone_still_encodes(
    kind: Kind, truncation: Truncation, cut_left: bool
) -> None:
    narrow = PairEncoder(
        make_tokenizer(kind), max_length=16, truncation=truncation, cut_left=cut_left
    )

    (pair,) = narrow.encode("the cat " * 50, ["a dog " * 50])

    assert pair.tokens == 16
    assert pair.truncated


@pytest.mark.parametrize("special", [*SPECIAL_TEXTS, "＜/s＞", "</s></s>"])  # noqa: RUF001
@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_a_special_token_is_plain_text(kind: Kind, special: str) -> None:
    """A document cannot pretend to end, or to be a query."""
    tokenizer = tokenizer_of(kind)
    template = PairTemplate.learn(tokenizer)
    unknown = {tokenizer.token_to_id("[UNK]"), tokenizer.token_to_id("<unk>")}
    ids = set(tokenizer.get_added_tokens_decoder()) - unknown

    pair = encode(kind, f"the {special}", f"a {special} cat {special}", 64)
    found = [token for token in pair.ids.tolist() if token in ids]

    assert found == [token for token, _ in (*template.before, *template.between, *template.after)]


def test_a_special_token_is_spelled_by_its_characters() -> None:
    """Unigram vocabularies list </s> as a piece of text; it becomes < / s >."""
    pair = encode("xlm-roberta", "a", "</s>", 64)
    tokenizer = tokenizer_of("xlm-roberta")

    document = [tokenizer.id_to_token(token) for token in pair.ids.tolist()[4:-1]]

    assert document == ["▁", "<", "/", "s", ">"]


@pytest.mark.parametrize("kind", KINDS)
def test_truncation_from_the_left_keeps_the_ends(kind: Kind) -> None:
    reference = make_tokenizer(kind)
    reference.enable_truncation(20, strategy="longest_first", direction="left")
    query, document = "the cat sat", "dog tree mat river bank " * 5
    left = PairEncoder(make_tokenizer(kind), max_length=20, cut_left=True)

    (pair,) = left.encode(query, [document])

    assert pair.ids.tolist() == reference.encode(query, document).ids


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_truncation_saved_with_a_tokenizer_are_off(kind: Kind) -> None:
    saved = make_tokenizer(kind)
    saved.enable_padding(length=60)
    saved.enable_truncation(9)

    (pair,) = PairEncoder(saved, max_length=64).encode("the cat", ["sat on the mat"])

    assert pair.ids.tolist() == encode(kind, "the cat", "sat on the mat", 64).ids.tolist()


def test_threads_share_an_encoder() -> None:
    shared = PairEncoder(make_tokenizer("bert"), max_length=24)
    jobs = [
        (f"the cat {i}", [f"dog {i} tree {j} " * (j + 1) for j in range(12)]) for i in range(24)
    ]
    alone = [[pair.ids.tolist() for pair in shared.encode(*job)] for job in jobs]
    together = threading.Barrier(4)

    def work(start: int) -> list[list[list[int]]]:
        together.wait()
        return [[pair.ids.tolist() for pair in shared.encode(*job)] for job in jobs[start::4]]

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(work, range(4)))

    assert [answers[i % 4][i // 4] for i in range(len(jobs))] == alone


def test_no_documents_are_no_pairs() -> None:
    assert encoder("bert", 64, Truncation.LONGEST_FIRST).encode("a query", []) == []


def test_segments_are_left_out_where_the_model_does_not_read_them() -> None:
    (pair,) = PairEncoder(make_tokenizer("bert"), max_length=64, segments=False).encode("a", ["b"])

    assert pair.segments is None
    assert pair.ids.dtype == np.int32


@pytest.mark.parametrize(
    ("post_processor", "message"),
    [
        (None, r"no special tokens around a pair; tokenizer\.json has no post_processor$"),
        (processors.ByteLevel(), "no special tokens around a pair$"),
    ],
)
def test_a_tokenizer_that_puts_no_special_tokens_is_refused(
    post_processor: processors.PostProcessor | None, message: str
) -> None:
    """Scores of pairs without them are off by too little to be noticed."""
    tokenizer = make_tokenizer("bert")
    if post_processor is None:
        parts = json.loads(tokenizer.to_str()) | {"post_processor": None}
        tokenizer = Tokenizer.from_str(json.dumps(parts))
    else:
        tokenizer.post_processor = post_processor

    with pytest.raises(ValueError, match=message):
        PairTemplate.learn(tokenizer)


@pytest.mark.parametrize(("kind", "least"), [("bert", 7), ("xlm-roberta", 8), ("roberta", 8)])
def test_a_pair_too_short_for_two_texts_is_refused(kind: Kind, least: int) -> None:
    """Every document would get the same score."""
    for max_length in (-1, 2, 3, least - 1):
        with pytest.raises(ValueError, match=f"{max_length} tokens have no room for two texts"):
            PairEncoder(make_tokenizer(kind), max_length=max_length)

    (pair,) = PairEncoder(make_tokenizer(kind), max_length=least).encode("cat on", ["dog on mat"])
    assert pair.tokens == least


def test_a_template_of_another_form_is_refused() -> None:
    tokenizer = make_tokenizer("bert")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$B:1 [SEP]:0 $A:0", special_tokens=[("[SEP]", 3)]
    )

    with pytest.raises(ValueError, match="does not join two texts"):
        PairTemplate.learn(tokenizer)
