"""A reranker that is a language model: Qwen3-Reranker's shape, vocabulary, files and prompt.

The weights are random. A random language model has no answer to give, so the two answer rows are
fitted: they lie along the direction in which the last states of real documents differ most, and are
scaled until logits spread. Differences between engines, and swaps of documents, then show.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from full_size import SPREAD
from qwen_tokenizer import qwen_tokenizer
from workloads import SHAPES, make_requests

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
BODY = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""The model card's, for whoever gives none."""

CARD_LENGTH = 8192
"""Tokens a pair is cut to on the model card; the model itself takes 40 960."""

FIT_DOCUMENTS = 16


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """The shape of a well-known model.

    *reach* is the standard deviation of the linear layers' weights times the root of the width,
    *sharpness* that of the attention logits.
    """

    like: str
    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head_width: int
    reach: float = 1.0
    sharpness: float = 2.0


LANGUAGE_MODELS = {
    "qwen3-0.6b": LanguageModel("Qwen/Qwen3-Reranker-0.6B", 28, 1024, 3072, 16, 8, 128),
    "qwen3-tiny": LanguageModel("the same, to try the benchmark out", 2, 64, 128, 4, 2, 16),
}


def ensure_language_model(folder: Path, name: str) -> Path:
    """Write the model of that name into a subfolder, unless a whole one is there; return it."""
    target = folder / name
    if not (target / "complete").exists():
        target.mkdir(parents=True, exist_ok=True)
        _write(target, LANGUAGE_MODELS[name])
        (target / "complete").touch()
    return target


def _write(folder: Path, row: LanguageModel) -> None:
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=qwen_tokenizer(),
        model_max_length=131_072,
        padding_side="left",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_chat_template(),
    )
    torch.manual_seed(20)
    config = _config(row, tokenizer)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    _randomize(model, row)
    _fit_answers(model, tokenizer)
    _spread_answers(model, tokenizer)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    _write_cross_encoder(folder, tokenizer)


def _config(row: LanguageModel, tokenizer: Any) -> Any:  # noqa: ANN401  transformers is imported late
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "qwen3",
        architectures=["Qwen3ForCausalLM"],
        vocab_size=max(len(tokenizer), 151_669),
        hidden_size=row.width,
        intermediate_size=row.inner,
        num_hidden_layers=row.layers,
        num_attention_heads=row.heads,
        num_key_value_heads=row.key_heads,
        head_dim=row.head_width,
        max_position_embeddings=40_960,
        max_window_layers=row.layers,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _randomize(model: Any, row: LanguageModel) -> None:  # noqa: ANN401  torch is imported late
    import torch

    with torch.inference_mode():
        model.get_input_embeddings().weight.normal_(0.0, 1.0)
        for layer in model.model.layers:
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.normal_(0.0, row.reach * module.in_features**-0.5)
            # Queries and keys leave their norms with this length: attention chooses among tokens.
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                norm.weight.fill_(row.sharpness**0.5)


def _fit_answers(model: Any, tokenizer: Any) -> None:  # noqa: ANN401  imported late
    """Set the rows of "yes" and "no" along the direction in which real pairs differ most."""
    import torch

    yes, no = answer_ids(tokenizer)
    with torch.inference_mode():
        states = _last_states(model, tokenizer, seed=1)  # (pairs, width)
        mean = states.mean(dim=0)
        _, _, directions = torch.linalg.svd(states - mean, full_matrices=False)
        # What all pairs have in common would only move every logit.
        direction = directions[0] - mean * (directions[0] @ mean) / (mean @ mean)
        rows = model.get_input_embeddings().weight
        rows[yes], rows[no] = direction, -direction


def _spread_answers(model: Any, tokenizer: Any) -> None:  # noqa: ANN401  imported late
    """Scale both rows until the logits of other pairs than the fitted ones deviate by SPREAD."""
    import torch

    answers = list(answer_ids(tokenizer))
    with torch.inference_mode():
        rows = model.get_input_embeddings().weight
        yes, no = rows[answers].double()
        logits = _last_states(model, tokenizer, seed=2) @ (yes - no)  # (pairs,)
        rows[answers] *= SPREAD / logits.std().item()


def _last_states(model: Any, tokenizer: Any, *, seed: int) -> Tensor:  # noqa: ANN401  imported late
    import torch

    (request,) = make_requests(SHAPES["RAG chunk"], FIT_DOCUMENTS, seed=seed)
    states = []
    for document in request.documents:
        text = PREFIX + BODY.format(instruction=INSTRUCTION, query=request.query, document=document)
        ids = tokenizer(text + SUFFIX, return_tensors="pt")["input_ids"]  # (1, tokens)
        states.append(model.model(input_ids=ids).last_hidden_state[0, -1])
    return torch.stack(states).double()


def answer_ids(tokenizer: Any) -> tuple[int, int]:  # noqa: ANN401  imported late
    """Return the token ids of "yes" and "no"."""
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    return yes, no


def _chat_template() -> str:
    """Return Jinja text for the card's prompt; the system message is the instruction."""

    def first(role: str, default: str = "") -> str:
        chosen = f'messages | selectattr("role", "eq", "{role}") | map(attribute="content")'
        return f'{{{{ {chosen} | first | default("{default}") }}}}'

    prompt = BODY.format(
        instruction=first("system", INSTRUCTION), query=first("query"), document=first("document")
    )
    # As expressions, for Jinja drops a line break after a block and at the end of a template.
    return f"{{{{ {json.dumps(PREFIX)} }}}}{prompt}{{{{ {json.dumps(SUFFIX)} }}}}"


def _write_cross_encoder(folder: Path, tokenizer: Any) -> None:  # noqa: ANN401  imported late
    """Add the files by which sentence-transformers opens the folder as a cross-encoder."""
    yes, no = answer_ids(tokenizer)
    forward = {"method": "forward", "method_output_name": "logits"}
    modules = (
        ("", "sentence_transformers.base.modules.transformer.Transformer"),
        ("1_LogitScore", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"),
    )
    files: dict[str, object] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": kind}
            for i, (path, kind) in enumerate(modules)
        ],
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": {
                "text": forward,
                "message": forward | {"format": "flat"},
            },
            "module_output_name": "causal_logits",
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": "torch.nn.modules.linear.Identity",
            "prompts": {"query": INSTRUCTION},
            "default_prompt_name": "query",
        },
        "1_LogitScore/config.json": {"true_token_id": yes, "false_token_id": no},
    }
    (folder / "1_LogitScore").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))
