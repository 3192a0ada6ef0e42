"""Architectures whose layout is known, one row each; any other runs from its own config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Layout:
    """How transformers lays out the architectures of one kind.

    Paths are module names as in ``named_modules``, below the base model (what is below the head)
    or, for ``activation``, below one layer. ``*`` stands for every member of a list.
    """

    model_types: tuple[str, ...]
    """Values of ``model_type`` in config.json."""

    layers: str
    """Where the layers are, in the order of their first use."""

    head: tuple[str, ...] = ()
    """Parts of the base model that run after the last layer."""

    activation: tuple[str, str] | None = None
    """In a layer, the linear module whose output goes to an activation, and that activation."""

    mlp: str | None = None
    """In a layer, the module whose inner states are the widest; it maps each token alone."""

    packed: bool = True
    """Whether attention goes through transformers' attention interface: then nothing is padded."""

    pooling: str | None = None
    """The setting of config.json that says ``cls`` where the head reads the first token alone, and
    ``mean`` where it reads all; None where it always reads the first."""

    causal: bool = False
    """Whether a token sees those before it alone, as in a decoder: then the last one is read."""

    def reads_one_token(self, config: Mapping[str, Any]) -> bool:
        """Whether the head reads nothing but one token of each pair."""
        return self.pooling is None or config.get(self.pooling) == "cls"


LAYOUTS: Final = (
    Layout(
        model_types=("bert", "camembert", "electra", "roberta", "xlm-roberta"),
        layers="encoder.layer",
        head=("pooler",),
        activation=("intermediate.dense", "intermediate.intermediate_act_fn"),
    ),
    Layout(
        model_types=("distilbert",),
        layers="transformer.layer",
        activation=("ffn.lin1", "ffn.activation"),
    ),
    Layout(
        model_types=("albert",),
        layers="encoder.albert_layer_groups.*.albert_layers",
        head=("pooler",),
        activation=("ffn", "activation"),
    ),
    Layout(
        # Both add a bias for relative positions to attention, in code of their own.
        model_types=("deberta-v2", "mpnet"),
        layers="encoder.layer",
        activation=("intermediate.dense", "intermediate.intermediate_act_fn"),
        packed=False,
    ),
    Layout(
        model_types=("modernbert",),
        layers="layers",
        head=("final_norm",),
        mlp="mlp",
        pooling="classifier_pooling",
    ),
    Layout(
        model_types=("gemma", "llama", "mistral", "qwen2", "qwen3"),
        layers="layers",
        head=("norm",),
        activation=("mlp.gate_proj", "mlp.act_fn"),
        mlp="mlp",
        causal=True,
    ),
)


def layout_of(config: Mapping[str, Any], *, causal: bool = False) -> Layout | None:
    """Return the row of a model's config.json, or None where it has none.

    *causal* says that the model's tokens see those before them alone: no row is for both kinds.
    """
    if config.get("is_decoder") and not causal:
        return None
    kind = config.get("model_type")
    return next((row for row in LAYOUTS if kind in row.model_types and row.causal is causal), None)
