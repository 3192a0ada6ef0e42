"""What observers of an engine are told of: openings of scorers, and each forward pass."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rerank_plugins.batching import batch_cost
from rerank_plugins.errors import is_out_of_memory
from rerank_plugins.events import BatchEvent, LoadEvent, SwitchEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rerank_plugins.breaker import State
    from rerank_plugins.cache import PairCache
    from rerank_plugins.jobs import Piece
    from rerank_plugins.observing import Audience
    from rerank_plugins.protocols import AnyScorer


def watched_opening(
    audience: Audience, model: str, open_scorer: Callable[[], AnyScorer]
) -> AnyScorer:
    """Open a scorer, and tell *audience* how that went."""
    began = time.monotonic()
    scorer, error = "", ""
    try:
        opened = open_scorer()
        scorer = opened.name
    except BaseException as exc:
        error = type(exc).__name__
        raise
    finally:
        audience.tell(LoadEvent(model, scorer, time.monotonic() - began, error))
    return opened


def tell_switch(audience: Audience, model: str, state: State, error: BaseException | None) -> None:
    """Tell *audience* that the circuit breaker of *model* changed its *state*."""
    audience.tell(SwitchEvent(model, state.value, "" if error is None else type(error).__name__))


class BatchWatch:
    """Tells *audience* of the forward passes of *model*, each by one scorer or replica of it.

    Whoever hears of a request has heard of its batches before. Where nobody listens, no clock is
    read.
    """

    def __init__(self, audience: Audience, model: str, cache: PairCache) -> None:
        self._audience = audience
        self._model = model
        self._cache = cache

    @contextmanager
    def forward(
        self, scorer: AnyScorer, batch: Sequence[Piece], *, replica: int = 0
    ) -> Iterator[None]:
        """Watch one forward pass over *batch*."""
        if not self._audience:
            yield
            return
        self._cache.begin(piece.ticket for piece in batch)
        began = time.monotonic()
        error = ""
        try:
            yield
        except BaseException as exc:
            error = "out_of_memory" if is_out_of_memory(exc) else type(exc).__name__
            raise
        finally:
            ended = time.monotonic()
            cost = batch_cost(batch, padded=scorer.padded)
            tokens = sum(piece.tokens for piece in batch) if scorer.padded else cost
            self._audience.tell(
                BatchEvent(
                    model=self._model,
                    scorer=scorer.name,
                    replica=replica,
                    pairs=len(batch),
                    tokens=tokens,
                    tokens_padded=cost - tokens,
                    wait_s=began - min(piece.queued_s for piece in batch),
                    duration_s=ended - began,
                    error=error,
                )
            )
