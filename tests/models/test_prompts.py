"""Prompts: the ids of the whole string, whatever stands where query and document meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from rerank_plugins.errors import InputError
from rerank_plugins.models.encoding import TokenPair
from rerank_plugins.models.families import Family, family_named, fill
from rerank_plugins.models.prompts import PromptEncoder
from rerank_plugins.models.windows import WindowedPair, WindowRule
from rerank_plugins.options import Truncation, WindowScore
from tests.tiny_tokenizers import gemma_like, qwen_like

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"qwen": qwen_like, "gemma": gemma_like}
CHAT = "<|im_start|>user\n{instruction}Query: {query}\nDocument:{blank}{document}{end}<|im_end|>\n"
PIECES = (
    ("<Query>: {query}\n<Document>: {document}", "\nAnswer:"),
    ("Query: {query} Document:{document}\nAnswer:",),
    ("{query}{document}",),
    ("{query} {document}\n\n",),
    ("{query}\n{document}. Yes or no?",),
    ("A: {query}", "\n", "B: {document}", "\n"),
    (CHAT.replace("{blank}", " ").replace("{end}", ""),),
    (CHAT.replace("{blank}", "\n").replace("{end}", "\n"),),
)
TEXT = st.text(st.sampled_from("ab the\n.:, 'é猫\u0301{}1\t"), min_size=1, max_size=12)


def copy_of(tokenizer: str) -> Tokenizer:
    """The tokenizers are cached, and an encoder changes what it is given."""
    return Tokenizer.from_str(TOKENIZERS[tokenizer]().to_str())


def make(
    tokenizer: str, pieces: Sequence[str], *, query_share: float = 1, **options: object
) -> PromptEncoder:
    settings = {"max_length": 300} | options
    family = Family(name="mine", pieces=tuple(pieces), yes="yes", no="no", query_share=query_share)
    return PromptEncoder(copy_of(tokenizer), family, **settings)  # type: ignore[arg-type]


def single(encoder: PromptEncoder, query: str, document: str) -> TokenPair:
    (pair,) = encoder.encode(query, [document])
    assert isinstance(pair, TokenPair)
    return pair


ENCODERS = {(t, pieces): make(t, pieces) for t in TOKENIZERS for pieces in PIECES}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("pieces", PIECES)
@settings(max_examples=60)
@given(query=TEXT, documents=st.lists(TEXT, min_size=1, max_size=3))
def test_ids_are_those_of_each_piece_as_one_string(
    tokenizer: str, pieces: tuple[str, ...], query: str, documents: list[str]
) -> None:
    encoder = ENCODERS[tokenizer, pieces]
    reference = TOKENIZERS[tokenizer]()

    encoded = encoder.encode(query, documents)

    for pair, document in zip(encoded, documents, strict=True):
        whole: list[int] = []
        for piece in pieces:
            text = fill(piece, query=query, document=document, instruction="")
            whole += reference.encode(text, add_special_tokens=False).ids
        assert isinstance(pair, TokenPair)
        assert pair.all_ids.tolist() == whole


def test_documents_of_a_query_share_all_that_comes_before_them() -> None:
    encoder = make("qwen", PIECES[0])

    one, other = encoder.encode("the cat", ["sat", "on a mat"])

    assert isinstance(one, TokenPair)
    assert isinstance(other, TokenPair)
    assert one.prefix is other.prefix
    assert one.prefix is not None
    reference = qwen_like().encode("<Query>: the cat\n<Document>:").ids
    assert one.prefix.ids.tolist() == reference


def test_two_calls_of_one_query_share_their_prefix_and_two_queries_do_not() -> None:
    encoder = make("qwen", PIECES[0])
    keys = [single(encoder, query, "sat").prefix for query in ("the cat", "the cat", "the dog")]

    first, again, other = (prefix and prefix.key for prefix in keys)
    assert first == again != other


def test_a_token_that_crosses_the_seam_is_kept_and_the_rest_still_shared() -> None:
    """Of a tokenizer that parts nothing, "▁▁" may hold the blank of both sides."""
    encoder = make("gemma", ("Query: {query} Document: {document}",))

    pair = single(encoder, "the cat", " sat on the mat")

    assert pair.prefix is not None
    assert pair.prefix.tokens > 4
    text = "Query: the cat Document:  sat on the mat"
    assert pair.all_ids.tolist() == gemma_like().encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("pieces", PIECES)
def test_what_is_too_long_is_cut_off_the_document_and_the_end_stays(
    tokenizer: str, pieces: tuple[str, ...]
) -> None:
    narrow = make(tokenizer, pieces, max_length=60)
    whole = single(make(tokenizer, pieces, max_length=4000), "the cat", "the dog. " * 200)
    assert not whole.truncated

    pair = single(narrow, "the cat", "the dog. " * 200)

    assert pair.truncated
    assert pair.tokens == 60
    end = fill(pieces[-1], instruction="").rpartition("{document}")[2]
    ending = TOKENIZERS[tokenizer]().encode(end, add_special_tokens=False).ids
    assert pair.all_ids.tolist()[60 - len(ending) :] == ending
    kept = 60 - len(ending) - 3
    assert pair.all_ids.tolist()[:kept] == whole.all_ids.tolist()[:kept]


def test_longest_first_cuts_the_query_too_and_only_second_bounds_it() -> None:
    query, document = "the cat " * 40, "the dog " * 40
    pieces = PIECES[5]

    def query_tokens(truncation: Truncation) -> int:
        pair = single(make("qwen", pieces, max_length=80, truncation=truncation), query, document)
        assert pair.tokens == 80
        assert pair.prefix is not None
        return pair.prefix.tokens

    both, second, auto = map(
        query_tokens, (Truncation.LONGEST_FIRST, Truncation.ONLY_SECOND, Truncation.AUTO)
    )
    assert both < second < auto


@pytest.mark.parametrize("score", WindowScore)
@pytest.mark.parametrize("pieces", [PIECES[0], PIECES[1], PIECES[5]])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_long_document_is_asked_about_in_windows(
    tokenizer: str, pieces: tuple[str, ...], score: WindowScore
) -> None:
    encoder = make(tokenizer, pieces, max_length=50, windows=WindowRule(4, score))
    document = " ".join(["cat", "dog", "river", "bank"] * 30)

    short, long = encoder.encode("the cat", ["a dog", document])

    assert isinstance(short, TokenPair)
    assert (
        short.all_ids.tolist()
        == single(make(tokenizer, pieces), "the cat", "a dog").all_ids.tolist()
    )
    assert isinstance(long, WindowedPair)
    assert {window.tokens for window in long.windows} == {50}
    assert {window.prefix and window.prefix.key for window in long.windows} == {
        short.prefix and short.prefix.key
    }
    assert (long.spans[0][0], long.spans[-1][1]) == (0, len(document))
    for (_, end), (start, _) in zip(long.spans, long.spans[1:], strict=False):
        assert start < end
    first = single(make(tokenizer, pieces, max_length=50), "the cat", document)
    assert long.windows[0].all_ids.tolist() == first.all_ids.tolist()


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length 12 has no room for texts beside"):
        make("qwen", CHAT.replace("{blank}", "").replace("{end}", "").split("|||"), max_length=12)


def test_an_answer_is_one_token() -> None:
    family = Family(name="mine", pieces=PIECES[0], yes="yes, it is")

    with pytest.raises(
        ValueError, match=r"the answer 'yes, it is' of the family 'mine' is . tokens"
    ):
        PromptEncoder(copy_of("qwen"), family, max_length=300)


def test_an_instruction_of_ones_own_is_part_of_the_prefix_and_the_default_is_itself() -> None:
    encoder = PromptEncoder(
        copy_of("qwen"),
        family_named("qwen3-reranker"),
        max_length=400,
    )

    def prefix(instruction: str | None) -> bytes:
        (pair,) = encoder.encode("the cat", ["sat"], instruction=instruction)
        assert isinstance(pair, TokenPair)
        assert pair.prefix is not None
        return pair.prefix.key

    assert prefix(None) == prefix(family_named("qwen3-reranker").instruction)
    assert prefix(None) != prefix("find the dog")


def test_a_word_that_was_added_to_the_vocabulary_is_no_markup() -> None:
    """A fine-tune may add words of its trade; "<think>" is markup though nobody marked it."""
    tokenizer = copy_of("qwen")
    tokenizer.add_tokens([AddedToken("kubernetes"), AddedToken("<mine>")])
    added = [tokenizer.token_to_id(text) for text in ("kubernetes", "<mine>")]
    encoder = PromptEncoder(tokenizer, Family("mine", PIECES[0], yes="yes"), max_length=300)

    ids = single(encoder, "a kubernetes", "<mine> kubernetes").all_ids.tolist()

    assert [ids.count(token) for token in added] == [2, 0]


def test_a_prompt_that_ends_with_its_document_is_read_where_nothing_of_it_fits() -> None:
    encoder = make("qwen", ["Q: {query} D:{document}"], max_length=30)

    pair = single(encoder, "the cat " * 40, "a dog")

    assert pair.truncated
    assert len(pair.ids) == pair.tokens == 30


@pytest.mark.parametrize(
    ("share", "truncation", "kept"),
    [
        (1, Truncation.AUTO, False),
        (1, Truncation.ONLY_SECOND, True),
        (1, Truncation.LONGEST_FIRST, True),
        (0.75, Truncation.AUTO, True),
    ],
)
def test_where_a_query_is_cut_what_stands_before_the_document_stays(
    share: float, truncation: Truncation, kept: bool
) -> None:
    """Unless its reference cuts the whole string on the right, as that of Qwen3-Reranker does."""
    encoder = make("qwen", PIECES[0], query_share=share, truncation=truncation, max_length=60)

    pair = single(encoder, "the cat " * 80, "the dog " * 80)

    assert pair.tokens == 60
    text = qwen_like().decode(pair.all_ids.tolist(), skip_special_tokens=False)
    assert ("<Document>: the dog" in text) is kept


@pytest.mark.parametrize(
    "pieces", [PIECES[0], CHAT.split("|||"), ("{query}\n{document}\n{instruction}",)]
)
def test_an_instruction_without_room_for_texts_is_refused(pieces: tuple[str, ...]) -> None:
    long = [piece.replace("{blank}", " ").replace("{end}", "") for piece in pieces]
    long = ["{instruction} " + long[0] if "{instruction}" not in long[0] else long[0], *long[1:]]
    encoder = make("qwen", long, max_length=80)
    assert single(encoder, "the cat", "a dog").tokens < 80

    with pytest.raises(InputError, match=r"the instruction makes the prompt \d+ tokens long"):
        encoder.encode("the cat", ["a dog"], instruction="the cat " * 80)


def test_windows_beside_a_long_query_are_no_crumbs() -> None:
    """Else each window would hold a token, and there would be as many as the document has."""
    encoder = make("qwen", PIECES[0], max_length=100, windows=WindowRule(8, WindowScore.MAX))
    query = "the cat " * 45

    (pair,) = encoder.encode(query, ["the dog " * 300])

    assert isinstance(pair, WindowedPair)
    assert all(window.tokens == 100 for window in pair.windows)
    assert len(pair.windows) < 45
    fitting = encoder.encode("the cat", ["the dog"])
    assert fitting[0].tokens == single(make("qwen", PIECES[0]), "the cat", "the dog").tokens


def test_what_is_kept_of_a_document_does_not_keep_the_rest_of_it() -> None:
    encoder = make("qwen", PIECES[0], max_length=40)
    encoder.encode("the cat", ["the dog " * 5000])

    (kept,) = encoder._documents.look_up([" " + "the dog " * 5000])

    assert kept is not None
    assert kept.ids.base is None
    assert len(kept.ids) == 40


def test_a_tokenizer_that_puts_blanks_beside_special_tokens_is_refused() -> None:
    """Its ids of a whole string are not those of the string's parts."""
    tokenizer = copy_of("gemma")
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    family = Family("mine", ("<bos>Q: {query}<eos>D: {document}",), yes="yes")

    with pytest.raises(ValueError, match="it puts blanks beside special tokens"):
        PromptEncoder(tokenizer, family, max_length=300)


@pytest.mark.parametrize(
    ("yes", "no", "expected"),
    [("<think>", "</think>", None), ("yes", "yes", "are one token"), (5, 5, "are one token")],
)
def test_answers_may_be_special_tokens_and_must_differ(
    yes: str | int, no: str | int, expected: str | None
) -> None:
    family = Family("mine", PIECES[0], yes=yes, no=no)
    if expected is None:
        ids = PromptEncoder(copy_of("qwen"), family, max_length=300).answers
        assert ids == (qwen_like().token_to_id(str(yes)), qwen_like().token_to_id(str(no)))
        return
    with pytest.raises(ValueError, match=expected):
        PromptEncoder(copy_of("qwen"), family, max_length=300)


def test_a_plain_question_begins_as_the_tokenizer_begins_a_text() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy_of("gemma")
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", bos)]
    )
    family = family_named("yes-no")
    answered = Family(
        **{f: getattr(family, f) for f in family.__slots__} | {"yes": "yes", "no": "no"}
    )

    pair = single(PromptEncoder(tokenizer, answered, max_length=300), "the cat", "a dog")

    assert pair.all_ids.tolist()[0] == bos
    assert pair.all_ids.tolist().count(bos) == 1
