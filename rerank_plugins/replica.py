"""A copy of the model with its worker: the thread that alone enters it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from rerank_plugins.batching import Budget, queued_tokens
from rerank_plugins.room import Pace
from rerank_plugins.scoring import BatchScoring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.cache import PairCache
    from rerank_plugins.home import Home
    from rerank_plugins.jobs import Piece
    from rerank_plugins.protocols import AnyScorer
    from rerank_plugins.scoring import Counter
    from rerank_plugins.watching import BatchWatch

logger = logging.getLogger(__name__)

DEADLY: Final = 2
"""Workers that a piece may take with it before its request fails: one may have died of itself."""


class Replica:
    """One scorer, and what its worker is at.

    ``errands`` are pieces that this one is to score, and no other. ``batch`` is what it has in
    hand, since ``begun_s`` (of `time.monotonic`).
    """

    def __init__(
        self,
        number: int,
        home: Home,
        scorer: AnyScorer,
        cache: PairCache,
        counter: Counter,
        watch: BatchWatch,
        batch_tokens: int,
    ) -> None:
        self.number = number
        self.home = home
        self.pace = Pace()
        self.errands: list[Piece] = []
        self.batch: Sequence[Piece] = ()
        self.begun_s = 0.0
        self._cache = cache
        self._counter = counter
        self._watch = watch
        self._batch_tokens = batch_tokens
        self._tokens = 0
        self.take(scorer)

    def take(self, scorer: AnyScorer) -> None:
        """Score with *scorer* from now on, with the whole budget."""
        self.scorer = scorer
        self._closed = False
        budget = Budget(self._batch_tokens)
        self.scoring = BatchScoring(
            scorer, self._cache, self._counter, budget, self._watch, replica=self.number
        )

    @property
    def running(self) -> tuple[Pace, int, float]:
        """Its pace, the tokens that it has in hand, and for how many seconds."""
        if not self.batch:
            return self.pace, 0, 0.0
        return self.pace, self._tokens, time.monotonic() - self.begun_s

    def score(self, batch: Sequence[Piece]) -> None:
        """Score *batch*, what is wanted of the one in hand, and note how long it took."""
        self.begun_s = time.monotonic()
        self.scoring.entered = ()
        # As the queue counted them: there, padding is no load.
        self._tokens = queued_tokens(batch, padded=self.scorer.padded)
        self.scoring.score(batch)
        self.batch = self.scoring.entered = ()
        self.pace.note(self._tokens, time.monotonic() - self.begun_s)

    def drop_batch(self) -> tuple[list[Piece], list[Piece]]:
        """Let go of what it died with: what may be tried again, and what has killed too often."""
        again: list[Piece] = []
        deadly: list[Piece] = []
        # It died of what the scorer was at, not of the rest of the batch; without, of any.
        suspects = set(map(id, self.scoring.entered or self.batch))
        for piece in (*self.batch, *self.errands):
            if not piece.ticket.settled:
                piece.deaths += id(piece) in suspects
                (deadly if piece.deaths >= DEADLY else again).append(piece)
        self.batch, self.errands = (), []
        return again, deadly

    def close(self) -> None:
        """Close its scorer, once."""
        if self._closed:
            return
        self._closed = True
        try:
            self.scorer.close()
        # A plug-in may raise anything; closing goes on.
        except Exception:
            logger.exception("closing the scorer %s failed", self.scorer.name)
