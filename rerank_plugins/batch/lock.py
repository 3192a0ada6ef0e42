"""One batch at a time in a folder of parts; the lock goes with the process that holds it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rerank_plugins.errors import InputError
from rerank_plugins.evaluation.lines import readable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold *folder* for this batch, where the system knows how.

    Raises:
        InputError: another process holds it; it is no folder, or none that can be read.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    with readable(folder):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another batch is at work there; wait for it") from None
        except OSError:
            # Some network file systems lock no folders; a part is written whole all the same.
            pass
        yield
    finally:
        os.close(handle)
