"""Packed execution: the pairs of a batch in one row of tokens, nothing padded.

Linear layers see (1, tokens, hidden), attention stays within each pair (`attention`), and positions
begin anew with each pair. The last layer computes only what the head reads of it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rerank_plugins.scorers.torch.attention import IMPLEMENTATION, KeysKeptError
from rerank_plugins.scorers.torch.row import BEFORE, KEPT_BYTES, KeptPrefix, PackedRow, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import nn
    from transformers import PreTrainedModel

    from rerank_plugins.models.encoding import TokenPair
    from rerank_plugins.models.layouts import Layout

    Stretch = tuple[NDArray[np.int32], int]
    """Token ids that lie in a row, and how many tokens the pair has before them."""


class PackedExecution:
    """Runs a model of a known layout over batches of any lengths.

    *model* gives labels, and has its layers in *backbone*. ``first_position`` is the position id of
    a pair's first token. Where transformers does not hand attention over (it cannot where its
    source files are missing), ``works`` is False.
    """

    padded = False

    def __init__(
        self,
        model: nn.Module,
        backbone: PreTrainedModel,
        layout: Layout,
        *,
        first_position: int = 0,
        segments: bool = False,
    ) -> None:
        self._model: Any = model
        self._device = backbone.device
        self._first_position = first_position
        self._segments = segments
        self._causal = layout.causal
        self._reads_one = layout.reads_one_token(backbone.config.to_dict())
        self._prefix: KeptPrefix | None = None
        self._kept_bytes = 0
        self._last_call = 0
        self._last_window: int | None = None
        backbone.set_attn_implementation(IMPLEMENTATION)
        self._layers = find_layers(backbone, layout)
        for layer in self._layers:
            _watch(layer, self._run_layer)
        self.works = self._learn_last_call()

    def run(self, pairs: Sequence[TokenPair]) -> torch.Tensor:
        """Return (pairs, labels) float32 on the model's device."""
        before, keeping = self._known(pairs)
        segments, stretches, order = _lay_out(pairs, before=before is not None)
        row = PackedRow(segments, self._device, causal=self._causal, before=before, keeping=keeping)
        labels = self._run_row(stretches, [pairs[i] for i in order], row).float()  # (pairs, labels)
        if keeping is not None:
            self._prefix = keeping
        restored = torch.empty_like(labels)
        restored[torch.tensor(order, device=self._device)] = labels
        return restored

    def _known(self, pairs: Sequence[TokenPair]) -> tuple[KeptPrefix | None, KeptPrefix | None]:
        """Return what is known of the one prefix of *pairs*, or what is to be kept of it.

        The batches of a query follow each other. Large ones, on a GPU, are few.
        """
        prefix = pairs[0].prefix
        if prefix is None or self._device.type != "cpu":
            return None, None
        if any(pair.prefix is None or pair.prefix.key != prefix.key for pair in pairs):
            return None, None
        if self._prefix is not None and self._prefix.key == prefix.key:
            return self._prefix, None
        if prefix.tokens * self._kept_bytes > KEPT_BYTES:
            return None, None
        return None, KeptPrefix(prefix.key, prefix.tokens)

    def close(self) -> None:
        """Let go of the model, which would else wait for the garbage collector."""
        self._prefix = None
        for layer in self._layers:
            del layer.forward
        self._model = None

    def _run_row(
        self, stretches: Sequence[Stretch], pairs: Sequence[TokenPair], row: PackedRow
    ) -> torch.Tensor:
        inputs = {
            "input_ids": self._joined([ids for ids, _ in stretches]),
            "position_ids": self._joined([self._positions(*stretch) for stretch in stretches]),
        }
        if self._segments:
            inputs["token_type_ids"] = self._joined(
                [pair.segments for pair in pairs if pair.segments is not None]
            )
        if not self._reads_one:
            # Read by the head alone, which gets padded states from the last layer.
            lengths = torch.tensor([pair.tokens for pair in pairs], device=self._device)
            places = torch.arange(row.longest, device=self._device)
            inputs["attention_mask"] = (places[None] < lengths[:, None]).long()
        labels: torch.Tensor = self._model(**inputs, packed_row=row).logits
        return labels

    def _positions(self, ids: NDArray[np.int32], before: int) -> NDArray[np.int64]:
        """Return the position ids of *ids*, (tokens,), which come after *before* others.

        Kinds that count from after the padding's id leave out tokens of that id.
        """
        if not self._first_position:
            return np.arange(before, before + len(ids))
        padding = self._first_position - 1
        counted = ids != padding
        positions: NDArray[np.int64] = np.cumsum(counted) * counted + padding
        return positions

    def _joined(self, parts: Sequence[NDArray[np.integer]]) -> torch.Tensor:
        """Return (1, tokens) int64."""
        joined = np.concatenate(parts).astype(np.int64, copy=False)
        return torch.from_numpy(joined).unsqueeze(0).to(self._device)

    def _learn_last_call(self) -> bool:
        """Count the calls of layers in one pass; a layer that is shared is called several times.

        Returns whether attention was called once for each, with the row.
        """
        one = KeptPrefix(b"", 1)
        row = PackedRow([Segment(1)], self._device, causal=self._causal, keeping=one)
        token = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        with torch.inference_mode():
            self._model(input_ids=token, position_ids=token + self._first_position, packed_row=row)
        self._last_call = row.layer_calls
        self._kept_bytes = sum(part.nbytes for layer in one.layers for part in layer)
        # The window is that of the last layer, in which one token alone would be elsewhere.
        self._last_window = row.window
        return 0 < row.layer_calls == row.attention_calls

    def _run_layer(
        self,
        layer: Callable[..., torch.Tensor],
        states: torch.Tensor,
        *args: Any,  # noqa: ANN401  whatever the model's code passes
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Run one layer; the last one only for what the head reads, with a row for each pair."""
        row: PackedRow | None = kwargs.get("packed_row")
        if row is None:
            return layer(states, *args, **kwargs)
        row.layer_calls += 1
        if row.layer_calls != self._last_call:
            return layer(states, *args, **kwargs)
        if not self._reads_one:
            return _pad(layer(states, *args, **kwargs), row)
        if self._last_window is not None:
            whole = layer(states, *args, **kwargs)
            return whole.index_select(1, row.reads).transpose(0, 1)
        # The layer is entered twice: for the keys and values of all tokens, left as soon as it asks
        # for attention; then for the tokens that are read, which see those.
        row.keys_only = True
        with suppress(KeysKeptError):
            layer(states, *args, **kwargs)
        row.keys_only = False
        read: torch.Tensor = layer(
            _read_tokens(states, row),
            *(_read_tokens(value, row) for value in args),
            **{name: _read_tokens(value, row) for name, value in kwargs.items()},
        )  # (1, pairs, hidden)
        # To the head, each pair is a sequence of one token.
        return read.transpose(0, 1)


def _lay_out(
    pairs: Sequence[TokenPair], *, before: bool = False
) -> tuple[list[Segment], list[Stretch], list[int]]:
    """Return a row's segments, their ids, and the order in which the pairs lie in it.

    A prefix comes once, before the pairs that begin with it, or not at all where it was *before*
    the row; neighbours are of similar length.
    """
    sharing: dict[bytes | None, list[int]] = {}
    for i, pair in enumerate(pairs):
        sharing.setdefault(pair.prefix.key if pair.prefix is not None else None, []).append(i)
    segments: list[Segment] = []
    stretches: list[Stretch] = []
    order: list[int] = []
    for members in sharing.values():
        members.sort(key=lambda i: len(pairs[i].ids))
        prefix, after = pairs[members[0]].prefix, None
        if before:
            after = BEFORE
        elif prefix is not None:
            after = len(segments)
            segments.append(Segment(prefix.tokens, read=False))
            stretches.append((prefix.ids, 0))
        shared = prefix.tokens if prefix is not None else 0
        segments += [Segment(len(pairs[i].ids), after) for i in members]
        stretches += [(pairs[i].ids, shared) for i in members]
        order += members
    return segments, stretches, order


def find_layers(model: PreTrainedModel, layout: Layout) -> list[nn.Module]:
    """Return the modules of a model's layers, each once."""
    lists: list[Any] = [model.base_model]
    for name in layout.layers.split("."):
        if name == "*":
            lists = [member for members in lists for member in members]
        else:
            lists = [part.get_submodule(name) for part in lists]
    return [layer for layers in lists for layer in layers]


def _watch(layer: nn.Module, run: Callable[..., Any]) -> None:
    """Let *run* decide what becomes of each call of *layer*."""
    original = layer.forward

    def forward(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return run(original, states, *args, **kwargs)

    layer.forward = forward


def _read_tokens(value: Any, row: PackedRow) -> Any:  # noqa: ANN401  a layer's arguments
    """Return what *value* holds of each pair's read token, where it has a row per token."""
    if isinstance(value, tuple):
        return tuple(_read_tokens(part, row) for part in value)
    if isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[1] == row.tokens:
        return value.index_select(1, row.reads)
    return value


def _pad(states: torch.Tensor, row: PackedRow) -> torch.Tensor:
    """Return (1, tokens, hidden) as (pairs, longest, hidden), filled with zeros on the right."""
    padded = states.new_zeros(len(row.reads), row.longest, states.shape[-1])
    for group in row.groups:
        if group.pair is not None:
            end = group.start + group.count * group.length
            part = states[0, group.start : end].view(group.count, group.length, -1)
            padded[group.pair : group.pair + group.count, : group.length] = part
    return padded
