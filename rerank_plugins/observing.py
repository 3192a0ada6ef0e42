"""Telling observers what happened, so that none of them can do harm."""

from __future__ import annotations

import logging
import weakref
from itertools import chain
from typing import TYPE_CHECKING, Final

from rerank_plugins.events import BatchEvent, LoadEvent, Observer, RequestEvent, SwitchEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

Event = LoadEvent | BatchEvent | RequestEvent | SwitchEvent

_METHODS: Final[dict[type, str]] = {
    LoadEvent: "on_load",
    BatchEvent: "on_batch",
    RequestEvent: "on_request",
    SwitchEvent: "on_switch",
}

# Weakly: an observer may be forgotten, and another one get its number.
_COMPLAINED_OF: weakref.WeakValueDictionary[tuple[int, str], Observer] = (
    weakref.WeakValueDictionary()
)


class Audience:
    """Who hears of an engine: the observers of its users, each once however many brought it.

    It needs no lock, for a finalizer may take a user out in the middle of anything.
    """

    def __init__(self) -> None:
        self._brought: dict[int, tuple[Observer, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._brought)

    def __contains__(self, observer: object) -> bool:
        return any(each is observer for each in self._present())

    def join(self, user: int, observers: tuple[Observer, ...]) -> None:
        """Add the observers that *user*, a number of the caller's choice, brings."""
        if observers:
            self._brought[user] = observers

    def leave(self, user: int) -> None:
        """Take out what *user* brought, if anything."""
        self._brought.pop(user, None)

    def tell(self, event: Event) -> None:
        """Tell whoever is there now."""
        tell(self._present(), event)

    def _present(self) -> Iterable[Observer]:
        return chain.from_iterable(list(self._brought.values()))


def tell(observers: Iterable[Observer], event: Event) -> None:
    """Tell each of *observers* once; what one raises is logged, once for each of its methods."""
    method = _METHODS[type(event)]
    # By identity: observers need not be hashable, and equal ones may keep accounts of their own.
    for observer in {id(each): each for each in observers}.values():
        try:
            getattr(observer, method)(event)
        except KeyboardInterrupt:
            raise
        # Whatever it is, the request or the worker that tells of itself has done nothing wrong.
        except BaseException:
            if _COMPLAINED_OF.get((id(observer), method)) is not observer:
                _COMPLAINED_OF[id(observer), method] = observer
                logger.exception(
                    "%s.%s failed; further failures of it are not logged",
                    type(observer).__qualname__,
                    method,
                )
