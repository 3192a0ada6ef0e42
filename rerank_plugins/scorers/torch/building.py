"""One model is built at a time, and a forward can tell that none was built meanwhile."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class Building:
    """A lock around the building of models, and a count of its turns.

    transformers changes the default number format of the whole process while it builds a model.
    Code that makes tensors without naming a format, as DeBERTa's does in each forward, would
    meanwhile round what it should not.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            # A child's copy may be held by a thread that stayed in the parent.
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._turns = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._turns += 1

    def __exit__(self, *_: object) -> None:
        self._turns += 1
        self._lock.release()

    def undisturbed(self, run: Callable[[], _T]) -> _T:
        """Return what *run* gives in a time in which no model was built: again, if need be."""
        while True:
            turns = self._turns
            result = run()
            # An odd number is a building that is under way.
            if turns % 2 == 0 and turns == self._turns:
                return result
            with self._lock:
                pass


BUILDING: Final = Building()
