"""What config.json says of a model's class and of code that it brings along."""

from __future__ import annotations

import pytest

from rerank_plugins.models.settings import needs_remote_code, other_kind


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"auto_map": {"AutoModelForSequenceClassification": "modeling.New"}}, True),
        ({"auto_map": {"AutoModel": "modeling.New"}}, False),
        ({"auto_map": None}, False),
        ({"auto_map": ["AutoModelForSequenceClassification"]}, False),
        ({}, False),
    ],
)
def test_a_model_brings_code_where_it_maps_the_head_to_its_own_class(
    config: dict[str, object], expected: bool
) -> None:
    assert needs_remote_code(config) is expected


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (["XLMRobertaForSequenceClassification"], None),
        (["BertForSequenceClassification", "BertModel"], None),
        (["BertModel"], "an embedding model or a bare encoder (BertModel)"),
        (["BertForMaskedLM"], "a masked language model, not trained to rank (BertForMaskedLM)"),
        (["Qwen3ForCausalLM"], "a causal language model (Qwen3ForCausalLM)"),
        (["GPT2LMHeadModel"], "a causal language model (GPT2LMHeadModel)"),
        (["T5ForConditionalGeneration"], "a model that generates text (T5ForConditionalGener"),
        (["BertForTokenClassification"], "a classifier of tokens (BertForTokenClassification)"),
        (["Strange"], "another kind of model (Strange)"),
        ([], None),
        (None, None),
        ("BertModel", None),
        ([3], None),
    ],
)
def test_a_model_that_is_no_cross_encoder_is_called_what_it_is(
    architectures: object, expected: str | None
) -> None:
    found = other_kind({"architectures": architectures})

    assert found is None if expected is None else (found or "").startswith(expected)
