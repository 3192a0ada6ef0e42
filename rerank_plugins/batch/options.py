"""What a batch is told besides the settings of its reranker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rerank_plugins.errors import InputError
from rerank_plugins.options import Priority, WhenFull
from rerank_plugins.requests import Keep
from rerank_plugins.settings import FUNCTION_SETTINGS, without_reprs

if TYPE_CHECKING:
    from rerank_plugins.config import RerankConfig

CHUNK_PAIRS: Final = 4096
"""Some seconds' work of a small model on a CPU, and two of them fit into the default queue."""

NOT_READ: Final = frozenset({"priority", "when_full", "timeout_s"})
"""Settings that a batch has values of its own for: nobody waits for one query of it."""

_SCORES_ALIKE: Final = NOT_READ | {
    "device",
    "replicas",
    "cache_entries",
    # Its URL may hold a password, besides: nothing to write beside an output.
    "shared_cache",
    "shared_cache_ttl_s",
    "shared_cache_bytes",
    "shared_cache_timeout_s",
    "batch_tokens",
    "queue_tokens",
    "max_wait_s",
    "observers",
    "local_files_only",
    "trust_remote_code",
    "allow_pickle",
}
"""Settings that may change between a batch and its resuming; the scorer's identity has the rest."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Which documents are kept, what of them is written, and what becomes of a bad query.

    *top_n*, *score_threshold* and *min_results* are those of `Reranker.rank`. *texts* adds the
    texts to the rows. *on_bad* "stop" ends the batch at a query that cannot be ranked, "skip"
    leaves it out and lists it. *chunk_pairs* is how many pairs a chunk has, and a little more: no
    query is cut. Where a batch is broken off, two chunks at most are ranked again.

    Raises:
        InputError: a value is out of range.
    """

    top_n: int | None = None
    score_threshold: float | None = None
    min_results: int = 0
    texts: bool = False
    on_bad: Literal["stop", "skip"] = "stop"
    chunk_pairs: int = CHUNK_PAIRS

    def __post_init__(self) -> None:
        Keep.checked(self.top_n, self.score_threshold, self.min_results)
        if self.on_bad not in ("stop", "skip"):
            raise InputError(f'on_bad must be "stop" or "skip", got {self.on_bad!r}')
        if isinstance(self.chunk_pairs, bool) or self.chunk_pairs < 1:
            raise InputError(f"chunk_pairs must be at least 1, got {self.chunk_pairs!r}")

    def identity(self, config: RerankConfig) -> dict[str, object]:
        """Return what changes the rows, as JSON values by name; what is not there changes none."""
        settings = {
            name: value
            for name, value in config.model_dump(
                mode="json", exclude=set(FUNCTION_SETTINGS)
            ).items()
            if name not in _SCORES_ALIKE
        }
        functions = {
            name: without_reprs(getattr(config, name))
            for name in sorted(FUNCTION_SETTINGS - _SCORES_ALIKE)
        }
        own = {
            name: getattr(self, name)
            for name in ("top_n", "score_threshold", "min_results", "texts", "chunk_pairs")
        }
        return settings | functions | own


def for_batch(config: RerankConfig) -> RerankConfig:
    """Return the settings with a batch's own: it waits for room, and for as long as it takes."""
    own = {"priority": Priority.BULK, "when_full": WhenFull.WAIT, "timeout_s": None}
    return config.model_copy(update=own)
