"""A text hook that kills its process with signal 9; Ray's workers import it from here."""

from __future__ import annotations

import os
import signal
from pathlib import Path


class KillOnce:
    """Kills the process that first sees a text with *word*; *marker* says that it happened."""

    def __init__(self, word: str, marker: Path) -> None:
        self._word = word
        self._marker = str(marker)

    def __call__(self, text: str, language: str | None, role: object) -> str:
        if self._word in text:
            try:
                Path(self._marker).touch(exist_ok=False)
            except FileExistsError:
                return text
            os.kill(os.getpid(), signal.SIGKILL)
        return text


def refuse_fox_13(text: str, language: str | None, role: object) -> str:
    """A hook that fails on one text."""
    if "fox 13" in text:
        raise ValueError(text)
    return text
