"""Bearer keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCHEME: Final = b"bearer "


class Keys:
    """The keys of a service: digests, so that neither length nor content shows in the time."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the headers of a request hold a key, or none is asked for."""
        if not self._digests:
            return True
        found = next((value for name, value in headers if name == b"authorization"), b"")
        if found[: len(_SCHEME)].lower() != _SCHEME:
            return False
        given = _digest(found[len(_SCHEME) :].strip())
        # All are looked at: which one it is takes no part in the time.
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
