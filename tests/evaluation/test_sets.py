"""Sets are read as they are written, and what is broken is named."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from rerank_plugins.errors import InputError
from rerank_plugins.evaluation.sets import read_set

if TYPE_CHECKING:
    from pathlib import Path


def test_a_set_is_read_in_the_order_of_its_files(toy: Path) -> None:
    dataset = read_set(toy)

    assert dataset.name == "toy"
    assert [query.qid for query in dataset.queries] == ["q1", "q2", "unjudged"]
    assert list(dataset.documents) == ["fox", "sun", "cub", "whale", "sky"]
    assert dataset.grades["q1"] == {"fox": 2, "cub": 1, "sky": 0}
    assert dataset.first_stage is None


def test_a_title_stands_above_the_text(toy: Path) -> None:
    documents = read_set(toy).documents

    assert documents["fox"].full_text == "red\nfox"
    assert documents["cub"].full_text == "fox cub"
    assert documents["sky"].full_text == "blue sky"


def test_a_query_without_a_relevant_document_is_not_judged(toy: Path) -> None:
    assert [query.qid for query in read_set(toy).judged_queries] == ["q1", "q2"]


def test_a_given_first_stage_is_in_the_order_of_its_ranks(toy_with_first_stage: Path) -> None:
    assert read_set(toy_with_first_stage).first_stage == {
        "q1": ("sun", "cub", "fox"),
        "q2": ("sky", "whale"),
    }


def test_zipped_files_are_the_same_set(toy: Path) -> None:
    plain = read_set(toy)
    for path in list(toy.iterdir()):
        with gzip.open(f"{path}.gz", "wb") as zipped:
            zipped.write(path.read_bytes())
        path.unlink()

    assert read_set(toy) == plain


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("queries.jsonl", b'{"qid": "a"}\n', "queries.jsonl:1: 'text' must be a string, got None"),
        ("queries.jsonl", b'\n{"qid": \n', "queries.jsonl:2: invalid JSON"),
        ("queries.jsonl", b"[1]\n", "queries.jsonl:1: expected an object, got [1]"),
        ("queries.jsonl", b"\xff\n", "queries.jsonl: not UTF-8"),
        (
            "queries.jsonl",
            b'{"qid": "a", "text": "x"}\n{"qid": "a", "text": "y"}\n',
            "queries.jsonl:2: query 'a' is there twice",
        ),
        (
            "corpus.jsonl",
            b'{"docid": "a", "text": "x"}\n{"docid": "a", "text": "y"}\n',
            "corpus.jsonl:2: document 'a' is there twice",
        ),
        ("queries.jsonl", b'"x"', "queries.jsonl:1: expected an object, got 'x'; a line is"),
        (
            "queries.jsonl",
            b'{"_id": "a", "text": "x"}\n',
            (
                "queries.jsonl:1: 'qid' must be a string, got None "
                '(its "_id" is BEIR\'s name for it); '
                'a line is {"qid": ..., "text": ...}'
            ),
        ),
        (
            "queries.jsonl",
            b'{"qid": "a", "text": "fox \\ud83e"}\n',
            "queries.jsonl:1: 'text' holds half a character, the lone surrogate U+D83E at 4",
        ),
        ("queries.jsonl", b"[" * 200_000, "queries.jsonl:1: JSON nested too deeply"),
        ("corpus.jsonl", b"", "corpus.jsonl: no documents"),
        ("corpus.jsonl", b'{"docid": "a", "text": " "}\n', "every document is blank"),
        (
            "qrels.tsv",
            b"q1 0 fox 1\n",
            (
                "qrels.tsv:1: a line is qid, docid, grade with tabs between, "
                "and there is no header; "
                "got 'q1 0 fox 1'"
            ),
        ),
        ("qrels.tsv", b"q1\t0\tfox\t1\n", "a line is qid, docid, grade with tabs"),
        (
            "qrels.tsv",
            b"query-id\tcorpus-id\tscore\n",
            (
                "qrels.tsv:1: a line is qid, docid, grade with tabs between, "
                "and there is no header; "
                "got 'score' for a number"
            ),
        ),
        (
            "qrels.tsv",
            b"q1\tfox\t1\nq1\tfox\t0\n",
            "qrels.tsv:2: document 'fox' has the grade 0 for query 'q1', and the grade 1 in an",
        ),
        (
            "candidates.tsv",
            b"q1\tfox\t1\t2\nq1\tfox\t2\t1\n",
            "candidates.tsv:2: document 'fox' is there twice for query 'q1'",
        ),
        ("candidates.tsv", b"q1\tcow\t1\t2\n", "candidates.tsv:1: document 'cow' is not in"),
        ("corpus.jsonl.gz", b"no gzip", "corpus.jsonl.gz: cannot be read"),
    ],
)
def test_what_is_broken_is_named_by_file_and_line(
    toy: Path, file: str, content: bytes, message: str
) -> None:
    if file.endswith(".gz"):
        (toy / file.removesuffix(".gz")).unlink()
    (toy / file).write_bytes(content)

    with pytest.raises(InputError) as caught:
        read_set(toy)
    assert message in str(caught.value)


def test_a_grade_may_be_repeated(toy: Path) -> None:
    (toy / "qrels.tsv").write_text("q1\tfox\t1\nq1\tfox\t1\n", encoding="utf-8")

    assert read_set(toy).grades == {"q1": {"fox": 1}}


@pytest.mark.parametrize("name", ["queries.jsonl", "corpus.jsonl", "qrels.tsv"])
def test_what_editors_put_before_the_first_line_is_no_part_of_it(toy: Path, name: str) -> None:
    plain = read_set(toy)
    (toy / name).write_bytes(b"\xef\xbb\xbf" + (toy / name).read_bytes())

    assert read_set(toy) == plain


def test_relevant_documents_that_are_not_in_the_corpus_are_known(toy: Path) -> None:
    (toy / "qrels.tsv").write_text("q1\tfox\t1\nq1\tcow\t1\nq2\tcat\t0\n", encoding="utf-8")

    assert read_set(toy).missing_documents == {"cow"}


def test_a_missing_file_is_named(toy: Path) -> None:
    (toy / "qrels.tsv").unlink()

    with pytest.raises(InputError, match=r"neither qrels\.tsv nor qrels\.tsv\.gz"):
        read_set(toy)
    with pytest.raises(InputError, match="no such folder"):
        read_set(toy / "missing")
