"""Families by name and by file, and which one a model's files stand for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.errors import ConfigError, ModelLoadError
from rerank_plugins.models.choosing import choose_family
from rerank_plugins.models.families import FAMILIES, family_named, fill
from rerank_plugins.models.files import ModelFiles
from rerank_plugins.options import Backend

if TYPE_CHECKING:
    from pathlib import Path

OWN = {"template": "Q: {query}\nD: {document}\nRelevant?", "yes": " yes", "no": " no"}


def write(folder: Path, row: object) -> str:
    path = folder / "mine.json"
    path.write_text(row if isinstance(row, str) else json.dumps(row))
    return str(path)


def files(folder: Path, config: dict[str, Any]) -> ModelFiles:
    weights = folder / "model.safetensors"
    found = ModelFiles("owner/model", "v1", folder, (weights,), folder, config, {})
    assert found.backend is Backend.TORCH
    return found


def test_every_row_goes_by_its_name() -> None:
    assert [family_named(row.name) for row in FAMILIES] == list(FAMILIES)


def test_a_file_holds_a_family(tmp_path: Path) -> None:
    family = family_named(write(tmp_path, OWN))

    assert family.name == "mine"
    assert family.pieces == (OWN["template"],)
    assert (family.yes, family.no) == (" yes", " no")
    assert family.activation == "sigmoid"


def test_a_file_changes_what_it_says_of_a_row(tmp_path: Path) -> None:
    row = family_named("qwen3-reranker")
    changed = {"base": "qwen3-reranker", "instruction": "find laws", "no": None, "yes": 9693}

    family = family_named(write(tmp_path, changed))

    assert family.pieces == row.pieces
    assert family.max_length == row.max_length
    assert (family.yes, family.no, family.instruction) == (9693, None, "find laws")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{", "cannot be read"),
        ([OWN], "it is list, not an object"),
        ({"yes": "yes"}, "pieces: "),
        ({"template": OWN["template"]}, "yes: "),
        ({**OWN, "template": "{query}"}, r"must hold \{document\} once, not 0 times"),
        ({**OWN, "template": "{query}{query}{document}"}, r"must hold \{query\} once, not 2"),
        ({**OWN, "template": "{document} {query}"}, r"must hold \{query\} before \{document\}"),
        ({**OWN, "yes": ""}, "yes must be the text of a token"),
        ({**OWN, "activation": "softmax"}, "activation: "),
        ({**OWN, "query_share": 1.5}, "query_share must be above 0"),
        ({**OWN, "max_length": "long"}, "max_length: "),
        ({**OWN, "sufix": "x"}, "sufix: unknown; known are name, pieces"),
        ({**OWN, "base": "qwen"}, 'base is .qwen., and must be one of "qwen3-reranker"'),
        ({**OWN, "base": "mine.json"}, "base is .mine.json., and must be"),
        ({**OWN, "pieces": ["{query}{document}"]}, "template and pieces are two ways"),
        ({**OWN, "model_types": ["llama"]}, "model_types is for the rows"),
        ({**OWN, "max_length": 0}, "max_length must be above 0"),
        ({**OWN, "yes": True}, "yes.*: Input should be a valid"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(row: object, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        family_named(write(tmp_path, row))
    assert "mine.json" in str(caught.value)


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'"chat-template", "qwen3-reranker".* got .qwen'):
        family_named("qwen")
    with pytest.raises(ConfigError, match=r"none\.json. cannot be read"):
        family_named(str(tmp_path / "none.json"))


def test_places_are_filled_once_and_other_braces_stay() -> None:
    assert fill("{query} {x} {document}", query="{document}", document="d") == "{document} {x} d"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("qwen3", "qwen3-reranker"),
        ("qwen2", "mxbai-rerank-v2"),
        ("gemma", "bge-reranker-gemma"),
        ("bert", None),
        (None, None),
    ],
)
def test_the_model_type_decides_where_nothing_is_asked(
    kind: str | None, expected: str | None, tmp_path: Path
) -> None:
    chosen = choose_family(files(tmp_path, {"model_type": kind}), "auto")

    assert (chosen and chosen.family.name) == expected


def test_what_is_asked_for_decides(tmp_path: Path) -> None:
    chosen = choose_family(files(tmp_path, {"model_type": "qwen3"}), "yes-no")

    assert chosen is not None
    assert (chosen.family.name, chosen.why) == ("yes-no", "as set")


def test_an_embedding_model_is_no_reranker_unless_it_is_asked_as_one(tmp_path: Path) -> None:
    """Qwen3-Embedding says Qwen3ForCausalLM in its config.json, as Qwen3-Reranker does."""
    modules = [{"path": "", "type": "st.models.Transformer"}, {"type": "st.models.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    found = files(tmp_path, {"model_type": "qwen3"})

    with pytest.raises(ModelLoadError, match=r'an embedding model.*family="qwen3-reranker"'):
        choose_family(found, "auto")
    assert choose_family(found, "qwen3-reranker") is not None


@pytest.mark.parametrize(
    ("architectures", "refused"),
    [
        (["Qwen3ForCausalLM"], False),
        (["Qwen3ForSequenceClassification"], False),
        (None, False),
        (["JinaForRanking"], True),
        (["Qwen3Model"], True),
        (["Qwen3ForTokenClassification"], True),
    ],
)
def test_a_model_of_another_head_is_not_asked_by_itself(
    architectures: list[str] | None, refused: bool, tmp_path: Path
) -> None:
    """jina-reranker-v3, a listwise model, has Qwen3's model_type."""
    found = files(tmp_path, {"model_type": "qwen3", "architectures": architectures})

    assert choose_family(found, "qwen3-reranker") is not None
    if refused:
        with pytest.raises(ModelLoadError, match=f"it is a {architectures and architectures[0]}"):
            choose_family(found, "auto")
    else:
        assert choose_family(found, "auto") is not None


def test_none_stands_for_a_cross_encoder(tmp_path: Path) -> None:
    assert choose_family(files(tmp_path, {"model_type": "qwen3"}), "none") is None


def test_a_template_about_documents_does_not_make_a_reranker(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{# documents for the query #} {{ messages }}")

    assert choose_family(files(tmp_path, {"model_type": "llama"}), "auto") is None
