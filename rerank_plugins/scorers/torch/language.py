"""A language model that answers one question about each pair, without its vocabulary's rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from rerank_plugins.errors import ModelLoadError
from rerank_plugins.models.settings import other_kind
from rerank_plugins.scorers.torch.checkpoint import read_rows, tensor_places

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

    from rerank_plugins.models.files import ModelFiles
    from rerank_plugins.scorers.torch.row import PackedRow


class AnswerHead(torch.nn.Module):
    """Maps the state of a prompt's last token to the logits of its answers, in float32.

    *rows* are (labels, hidden): those of the vocabulary's matrix that stand for the answers, no
    before yes, or the head of a checkpoint that was converted to a classifier. *cap* bounds logits
    as Gemma 2 does, *scale* multiplies them as Cohere's models do.
    """

    rows: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, rows: torch.Tensor, bias: torch.Tensor | None, *, cap: float | None, scale: float
    ) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("bias", bias)
        self._cap = cap
        self._scale = scale

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map (pairs, hidden) to (pairs, labels)."""
        labels = torch.nn.functional.linear(states.float(), self.rows, self.bias) * self._scale
        return labels if self._cap is None else torch.tanh(labels / self._cap) * self._cap


class AnsweringModel(torch.nn.Module):
    """A language model without its own head, and an `AnswerHead` on each pair's last token."""

    def __init__(self, backbone: PreTrainedModel, head: AnswerHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        packed_row: PackedRow | None = None,
    ) -> SimpleNamespace:
        """Return the logits of the answers, (pairs, labels), as ``logits``.

        Takes a packed row, of whose pairs the last layer gives the last token alone, or (pairs,
        tokens) filled on the right, where *attention_mask* is 0.
        """
        options: dict[str, Any] = {} if packed_row is None else {"packed_row": packed_row}
        states: torch.Tensor = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            **options,
        ).last_hidden_state
        if attention_mask is None:
            return SimpleNamespace(logits=self.head(states[:, -1]))
        last = attention_mask.sum(1) - 1
        return SimpleNamespace(logits=self.head(states[torch.arange(len(last)), last]))


def read_answers(files: ModelFiles, config: PretrainedConfig, answers: Sequence[int]) -> AnswerHead:
    """Return the head of a checkpoint; *answers* are the ids of the tokens yes and no, if any.

    Raises:
        ModelLoadError: there is no such head in the checkpoint.
    """
    places = tensor_places(files.weights)
    scale = getattr(config, "logit_scale", None) or 1 / (
        getattr(config, "logits_scaling", None) or 1
    )
    cap = getattr(config, "final_logit_softcapping", None)
    if (name := _ending(places, "score.weight")) is not None:
        return AnswerHead(
            read_rows(places[name], name), _bias(places, "score.bias"), cap=None, scale=1
        )
    tied = config.get_text_config().tie_word_embeddings
    wanted = ("embed_tokens.weight", "lm_head.weight")
    name = next(filter(None, (_ending(places, end) for end in wanted[:: 1 if tied else -1])), None)
    if name is None:
        what = other_kind(files.config) or "a checkpoint of its own kind"
        raise ModelLoadError(
            files.name, f"it is {what}, without {' or '.join(wanted)} to read answers with"
        )
    ids = list(reversed(answers))
    try:
        rows = read_rows(places[name], name, ids)
    except IndexError as exc:
        raise ModelLoadError(
            files.name, f"its vocabulary has no token of the ids {ids} that its family answers with"
        ) from exc
    return AnswerHead(rows, _bias(places, "lm_head.bias", ids), cap=cap, scale=scale)


def _ending(places: dict[str, Path], end: str) -> str | None:
    return next((name for name in places if name == end or name.endswith(f".{end}")), None)


def _bias(places: dict[str, Path], end: str, rows: Sequence[int] | None = None) -> Any:  # noqa: ANN401
    name = _ending(places, end)
    return None if name is None else read_rows(places[name], name, rows)
