"""Memory of the C library: kept from layer to layer of a pass, given back where much is freed."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

KEPT_BYTES: Final = 256_000_000
LARGEST_BYTES: Final = 128_000_000
"""What glibc keeps of freed memory, and of blocks up to which size: the activations of a batch."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of ``malloc.h`` for ``mallopt``."""


def keep_memory() -> None:
    """Let the C library keep the memory that one layer frees for the next, where it is glibc.

    It would give each large block back to the system, and the system would clear its pages again
    for the next layer: an eighth of a pass of a language model.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def return_memory() -> None:
    """Give the pages of freed memory back to the system, where the C library can.

    glibc keeps them, in holes that the next layer's reordered weights do not fit into.
    """
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
