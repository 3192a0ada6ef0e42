"""What a service allows: limits, keys, names. The settings of its models are their own."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

from rerank_plugins.errors import ConfigError
from rerank_plugins.settings import LONGEST_TIMEOUT_S

MEGABYTE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Limits and keys of a service.

    A request holds at most ``max_documents`` documents of ``max_characters`` characters each (the
    query too) in ``max_body_bytes`` bytes, and must have come within ``body_timeout_s`` seconds;
    ``max_requests`` are answered at a time, of ``max_bodies_bytes`` bytes in all, the next is told
    to come back. Where ``api_keys`` are
    set, every path but those of health wants one as ``Authorization: Bearer KEY``. With
    ``strict_models`` a model that is not served is refused even where only one is.

    Raises:
        ConfigError: a limit is no whole number of at least 1, the seconds are none, or a key is
            blank or no ASCII.
    """

    max_documents: int = 10_000
    max_characters: int = 1_000_000
    max_body_bytes: int = 32 * MEGABYTE
    max_bodies_bytes: int = 512 * MEGABYTE
    max_requests: int = 512
    body_timeout_s: float = 60.0
    strict_models: bool = False
    api_keys: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.startswith("max_") and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise ConfigError(
                    f"{each.name}: expected a whole number of at least 1, got {value!r}"
                )
        seconds: object = self.body_timeout_s
        if not (isinstance(seconds, int | float) and 0 < seconds <= LONGEST_TIMEOUT_S):
            raise ConfigError(
                f"body_timeout_s: expected seconds above 0, got {self.body_timeout_s!r}"
            )
        given: object = self.api_keys
        if isinstance(given, str):
            # Each of its letters would be a key.
            raise ConfigError("api_keys: expected a tuple of keys, got one text")
        for number, key in enumerate(self.api_keys):
            # A header can hold no other; the key itself is not shown.
            if not (key and key.isascii() and key.isprintable() and " " not in key):
                raise ConfigError(f"api_keys[{number}]: expected ASCII characters without spaces")
