"""Threads that go on ranking while something is done to the shared cache."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from rerank_plugins import Reranker

WAIT_S = 60


class Load:
    """Ranks in two threads, forgetting what memory holds; each answer is checked."""

    def __init__(self, reranker: Reranker, logit: Callable[[str, str], float]) -> None:
        self.rounds = 0
        self.wrong: list[object] = []
        self._reranker = reranker
        self._logit = logit
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._rank, args=(i,)) for i in range(2)]

    def go_on(self, rounds: int = 20) -> None:
        """Wait for some more rounds."""
        until, goal = time.monotonic() + WAIT_S, self.rounds + rounds
        while self.rounds < goal and not self.wrong:
            assert time.monotonic() < until, "no round ends any more"
            time.sleep(0.001)

    def hits_come(self) -> None:
        """Wait until the shared cache answers something again."""
        before = self._hits()
        until = time.monotonic() + WAIT_S
        while self._hits() <= before + 20:
            assert not self.wrong, self.wrong[:3]
            assert time.monotonic() < until, "no hit comes any more"
            time.sleep(0.001)

    def fails(self, harm: Callable[[], object], times: int = 1, *, again_s: float = WAIT_S) -> None:
        """Do *harm*, and wait until the shared cache has failed a few times more.

        It is done again every *again_s* seconds: what is written at that moment may undo it.
        """
        before = self._reranker.stats()["fake"].shared_errors
        now = time.monotonic()
        until, next_harm = now + WAIT_S, now
        while self._reranker.stats()["fake"].shared_errors < before + times:
            now = time.monotonic()
            assert now < until, "nothing fails"
            if now >= next_harm:
                harm()
                next_harm = now + again_s
            time.sleep(0.001)

    def _hits(self) -> int:
        return self._reranker.stats()["fake"].shared_hits

    def _rank(self, number: int) -> None:
        round_ = 0
        while not self._ended.is_set() and not self.wrong:
            round_ += 1
            # Old pairs, and now and then new ones: there is something to read and to write.
            query = f"{number} {round_ % 5} {round_ // 30}"
            documents = [f"{'x' * (1 + i + round_ % 7)} {number}" for i in range(12)]
            self._reranker.clear_cache()
            try:
                ranking = self._reranker.rank(query, documents)
                found = {d.text: d.logit for d in ranking}
                expected = {text: self._logit(query, text) for text in documents}
                if found != expected:
                    self.wrong.append((query, found))
            # Whatever it is, the test is to say it.
            except BaseException as exc:  # noqa: BLE001
                self.wrong.append(exc)
            self.rounds += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        assert not self.wrong, self.wrong[:3]
