"""How much memory is free, and the largest batch that a model fits into it with."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from rerank_plugins.errors import ModelLoadError, first_line
from rerank_plugins.models.settings import needs_remote_code
from rerank_plugins.options import WEIGHT_ONLY, Precision
from rerank_plugins.scorers.torch.hardware import PrecisionChoice
from rerank_plugins.scorers.torch.memory import (
    MemoryEstimate,
    estimate,
    largest_row,
    saved_tensors,
    shares_prefixes,
    weight_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rerank_plugins.models.files import ModelFiles

logger = logging.getLogger(__name__)

MEMINFO: Final = Path("/proc/meminfo")
OWN_GROUPS: Final = Path("/proc/self/cgroup")
GROUPS: Final = Path("/sys/fs/cgroup")

_FILE_PAGES: Final = ("inactive_file", "active_file")
"""Counters of memory.stat: pages of files in memory, used of late or not."""

GB: Final = 1e9

LEAST_SHARE: Final = 8
"""Where a prefix comes on top of a batch, room for the longest pair is there in any case: the batch
may be as small as this part of it, below which next to nothing is gained."""


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory a model may take on *device*; None where that is not known."""
    if device.type == "cuda":
        # What torch holds back of freed tensors is as good as free.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    known = [b for b in (_machine_bytes(), _group_bytes(OWN_GROUPS, GROUPS)) if b is not None]
    if device.type == "mps":
        known.append(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min(known, default=None)


def _machine_bytes() -> int | None:
    """Return what the system can give without swapping."""
    if MEMINFO.exists():
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
        return None
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _group_bytes(own: Path, groups: Path) -> int | None:
    """Return what is left of the limits of a container, version 1 or 2; None without any.

    A group is bound by the limits of those above it too. What it holds of files is given up when
    memory is wanted, so it does not count.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = groups, ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            root = groups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        inner = root / path.lstrip("/")
        folders = (inner, *inner.parents)
        left += [_left_in(f, *names) for f in folders if f == root or root in f.parents]
    return min((b for b in left if b is not None), default=None)


def _left_in(folder: Path, limit: str, used: str, prefix: str) -> int | None:
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        if most == "max":
            return None
        taken = int((folder / used).read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii").split()
    except OSError:
        return None
    counters = dict(zip(stat[::2], stat[1::2], strict=False))
    cached = sum(int(counters.get(prefix + name, 0)) for name in _FILE_PAGES)
    return max(0, int(most) - taken + cached)


def needs(
    files: ModelFiles,
    precision: PrecisionChoice,
    device: torch.device,
    longest: int,
    *,
    trust_remote_code: bool = False,
) -> Callable[[int], MemoryEstimate]:
    """Return what tells how much a model takes with batches of a given number of tokens.

    Pickled weights, and those that a model's own code reads, are whole in memory before they are
    rounded: both count then.

    Raises:
        ModelLoadError: config.json or the header of a checkpoint holds what no model does; what is
            returned raises it too.
    """
    with _strange_numbers(files):
        tensors = saved_tensors(files)
        whole = precision.precision in WEIGHT_ONLY and _read_whole(files, trust_remote_code)
        unrounded = PrecisionChoice(precision.arithmetic, "", precision.arithmetic)
        beside = weight_bytes(tensors, unrounded) if whole else 0

    def need(tokens: int) -> MemoryEstimate:
        with _strange_numbers(files):
            found = estimate(
                files.config, tensors, precision, tokens=tokens, longest=longest, device=device.type
            )
        return replace(found, weights=found.weights + beside)

    return need


def _read_whole(files: ModelFiles, trust_remote_code: bool) -> bool:
    """Whether weights are loaded all at once, and not tensor by tensor."""
    own_code = trust_remote_code and needs_remote_code(files.config)
    return own_code or any(path.suffix != ".safetensors" for path in files.weights)


@contextmanager
def _strange_numbers(files: ModelFiles) -> Iterator[None]:
    """Say as `ModelLoadError` what sizes and shapes of strangers make arithmetic raise."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as exc:
        raise ModelLoadError(
            files.name,
            "its config.json, or the header of its weights, holds what no model does: "
            f"{type(exc).__name__}: {first_line(exc)}",
        ) from exc


def batch_that_fits(
    files: ModelFiles,
    precision: PrecisionChoice,
    device: torch.device,
    *,
    longest: int,
    default: int,
    asked: int | None,
    trust_remote_code: bool = False,
) -> int:
    """Return how many tokens a batch may have: *asked*, or as much of *default* as memory allows.

    It is told from the memory that is free now; logits do not hang on it. No batch of less than the
    *longest* pair is aimed at, since such a pair is a batch by itself, or of less than a part of it
    where prefixes are shared.

    Raises:
        ModelLoadError: the weights and the smallest batch, or what was *asked*, do not fit; or the
            files do not tell sizes.
    """
    need_in = partial(
        needs, files, device=device, longest=longest, trust_remote_code=trust_remote_code
    )
    need = need_in(precision)
    least = max(1, longest // LEAST_SHARE) if shares_prefixes(files.config) else longest
    smallest = asked or min(default, least)
    found = need(smallest)
    free = free_bytes(device)
    if free is None:
        return asked or default
    if found.total > free:
        others = other_precisions(precision, device)
        in_others = {other.precision: need_in(other)(smallest) for other in others}
        what = f"it needs {found.total / GB:.1f} GB on {device} in {precision.precision}"
        smaller = "batch_tokens" if smallest > longest else "max_length"
        row = largest_row(files.config, tokens=smallest, longest=longest)
        refusal = _refusal(what, free, found, in_others, tokens=row, smaller=smaller)
        raise ModelLoadError(files.name, refusal)
    if asked is not None:
        return asked
    batch = default
    while batch > least and need(batch).total > free:
        batch = max(least, batch // 2)
    if batch < default:
        logger.info(
            "%s: batches have %d tokens instead of %d, for which %.1f GB would be needed and %.1f "
            "are free",
            files.name,
            batch,
            default,
            need(default).total / GB,
            free / GB,
        )
    return batch


def _refusal(
    what: str,
    free: int,
    found: MemoryEstimate,
    others: Mapping[Precision, MemoryEstimate],
    *,
    tokens: int,
    smaller: str,
) -> str:
    """Say of *what* does not fit what it is made of, what is free, and what would fit."""
    text = (
        f"{what}: weights {found.weights / GB:.1f} GB, activations of {tokens} tokens "
        f"{found.activations / GB:.1f} GB; {free / GB:.1f} GB are free. "
    )
    ways = [
        f'precision="{other}" ({need.total / GB:.1f} GB)'
        for other, need in others.items()
        if need.total < found.total and need.total <= free
    ]
    if found.weights < free:
        ways.append(f"a smaller {smaller}")
    return text + "Try " + ", ".join([*ways, "another device", "or a smaller model"])


def other_precisions(precision: PrecisionChoice, device: torch.device) -> list[PrecisionChoice]:
    """Return what else the weights could be kept in on *device*, largest first."""
    half = Precision.FP16 if device.type == "cuda" else Precision.BF16
    plain = [PrecisionChoice(p, "", p) for p in (Precision.FP32, half)]
    if device.type != "mps":
        arithmetic = precision.arithmetic
        rounded = (PrecisionChoice(p, "", arithmetic) for p in (Precision.INT8, Precision.INT4))
        plain += rounded
    return [other for other in plain if other.precision is not precision.precision]
