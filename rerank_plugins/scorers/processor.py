"""What this machine's processor can do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

CPU_FEATURES: Final = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""Instructions that make matrix products faster, by their names in Linux."""

CPUINFO: Final = Path("/proc/cpuinfo")


def cpu_features(cpuinfo: str) -> list[str]:
    """Return which of `CPU_FEATURES` the processor has, as Linux lists them."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    there = set(found[1].split()) if found else set()
    return [feature for feature in CPU_FEATURES if feature in there]


def read_cpuinfo() -> str:
    """Return what Linux says of the processor; blank on other systems."""
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
