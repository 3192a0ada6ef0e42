"""What a model takes in memory, by number format, as `info` shows it; its weights are not read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypedDict

from rerank_plugins.errors import RerankError
from rerank_plugins.options import EMBEDDED, LEXICAL, Backend

if TYPE_CHECKING:
    from rerank_plugins.config import RerankConfig

GB: Final = 1e9


class Row(TypedDict):
    """Bytes that a model takes in one number format."""

    weights: int
    activations: int
    total: int


class Memory(TypedDict):
    """What a model takes with batches of ``batch_tokens`` tokens; ``free`` is what there is."""

    device: str
    batch_tokens: int
    free: int | None
    by_precision: dict[str, Row]


def memory_of(config: RerankConfig, backend: str, batch_tokens: int | None) -> Memory | None:
    """Estimate what a PyTorch model takes, the precision of *config* first.

    None where it runs elsewhere, is not on this disk or cannot be told.
    """
    if config.model in (EMBEDDED, LEXICAL) or backend in (
        Backend.ONNX,
        Backend.LEXICAL,
        Backend.REMOTE,
    ):
        return None
    try:
        return _estimate(config, batch_tokens)
    except (RerankError, OSError, ValueError):
        # What is wrong with the model, or with torch, is said where it is opened.
        return None


def _estimate(config: RerankConfig, batch_tokens: int | None) -> Memory:
    from rerank_plugins.models.choosing import choose_family
    from rerank_plugins.models.files import find_model
    from rerank_plugins.models.weights import choose_torch
    from rerank_plugins.scorers.torch.hardware import choose_device, choose_precision, import_torch

    files = find_model(
        config.model,
        choose=partial(choose_torch, allow_pickle=config.allow_pickle),
        revision=config.revision,
        local_files_only=True,
        remote_code=config.trust_remote_code,
    )
    import_torch("the estimate of memory")
    from rerank_plugins.scorers.torch.loading import saved_dtype
    from rerank_plugins.scorers.torch.memory import largest_row
    from rerank_plugins.scorers.torch.opening import BATCH_TOKENS, longest_prompt
    from rerank_plugins.scorers.torch.room import free_bytes, needs, other_precisions

    device = choose_device(config.device)
    chosen = choose_precision(config.precision, device, saved_dtype(files))
    longest = longest_prompt(files, config, choose_family(files, config.family))
    tokens = batch_tokens or config.batch_tokens or BATCH_TOKENS[device.type]
    rows: dict[str, Row] = {}
    for precision in (chosen, *other_precisions(chosen, device)):
        need = needs(files, precision, device, longest, trust_remote_code=config.trust_remote_code)
        found = need(tokens)
        rows[precision.precision] = {
            "weights": found.weights,
            "activations": found.activations,
            "total": found.total,
        }
    return {
        "device": str(device),
        "batch_tokens": largest_row(files.config, tokens=tokens, longest=longest),
        "free": free_bytes(device),
        "by_precision": rows,
    }


def memory_rows(memory: Memory) -> dict[str, str]:
    """Return *memory* as text by what is in it."""
    free = memory["free"]
    rows = {
        precision: f"{_gb(row['total'])}: weights {_gb(row['weights'])}, activations of "
        f"{memory['batch_tokens']} tokens {_gb(row['activations'])}"
        for precision, row in memory["by_precision"].items()
    }
    return rows | {"free": f"{'unknown' if free is None else _gb(free)} on {memory['device']}"}


def _gb(count: int) -> str:
    return f"{count / GB:.2f} GB"
