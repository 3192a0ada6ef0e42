"""What the C library of Linux does with freed memory, told by what is asked of it."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

import torch

LARGEST_KEPT: Final = 31 * 2**20
"""Bytes of the largest freed block that glibc can be brought to keep for the next of its size."""


def return_memory() -> None:
    """Give the pages of replaced weights back to the system, where the C library can.

    glibc keeps them, in holes that the next layer's reordered weights do not fit into.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def keep_freed_blocks() -> None:
    """Let the activations of a layer lie where those of the layer before it lay.

    glibc fetches large blocks from the system and gives each back, page by page; once a block was
    freed, it keeps those of up to that size. (Its manual: ``M_MMAP_THRESHOLD``, dynamic.)
    """
    torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")
