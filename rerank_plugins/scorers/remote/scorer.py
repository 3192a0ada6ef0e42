"""The remote scorer: batches become requests, sent at the same time, each until it is answered."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Literal

from rerank_plugins.errors import RerankTimeoutError
from rerank_plugins.options import SCORES_ALONE, Backend
from rerank_plugins.scorers.remote.answers import read_answer
from rerank_plugins.scorers.remote.dialects import Question
from rerank_plugins.scorers.remote.failures import Failure, Kind
from rerank_plugins.scorers.remote.pairs import (
    RemotePair,
    estimated_tokens,
    parts_of,
    prefix_of,
)
from rerank_plugins.scorers.remote.retries import (
    LONGEST_RETRY_AFTER_S,
    MOST_TRIES,
    RetryBudget,
    wait_s,
)
from rerank_plugins.scorers.selection import Choice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from rerank_plugins.protocols import Until
    from rerank_plugins.scorers.remote.answers import Answer
    from rerank_plugins.scorers.remote.exchange import Exchange
    from rerank_plugins.scorers.remote.health import Fleet, Server
    from rerank_plugins.scorers.remote.identity import Served
    from rerank_plugins.scorers.remote.pairs import Part

    Identify = Callable[[Server], Awaitable[Served]]

REQUEST_TIMEOUT_S: Final = 60.0
"""How long one request may take where nobody's deadline is sooner: a cold GPU compiles first."""

LOOK_S: Final = 0.25
"""How often is looked whether anybody still waits: callers may go before their deadline."""

PATIENT_S: Final = 1.0
"""Who is left after less than that has done nothing wrong: callers come and go."""

BATCH_TOKENS: Final = 32_768
"""Two of TEI's own batches: one is scored while the next is sent, read and taken apart."""


class RemoteScorer:
    """Scores pairs by asking servers that serve one and the same model.

    It lives in one thread, with an event loop of its own there, so that requests are sent at the
    same time and are given up when nobody waits any more.
    """

    languages = None
    padded = False
    batch_tokens = BATCH_TOKENS

    def __init__(
        self,
        runner: asyncio.Runner,
        exchange: Exchange,
        fleet: Fleet,
        identify: Identify,
        served: Served,
    ) -> None:
        self.name = f"remote/{served.model}"
        self.identity = served.identity
        self.activation: Literal["sigmoid", "logit"] = (
            "logit" if served.row.dialect in SCORES_ALONE else "sigmoid"
        )
        self.instruction = served.instruction
        self._runner = runner
        self._exchange = exchange
        self._fleet = fleet
        self._identify = identify
        self._served = served
        self._documents = served.documents
        self._budget = RetryBudget(fleet.clock)
        self._room = asyncio.Semaphore(served.at_once * len(fleet.servers))

    @property
    def choices(self) -> Mapping[str, Choice]:
        """What settings came to, as ``info`` shows it."""
        theirs = Choice("the server's", "it does not say")
        return {
            "backend": Choice(Backend.REMOTE, "the model is an address"),
            "dialect": Choice(self._served.row.dialect, "as the server says, or as set"),
            "remote_model": Choice(str(self._served.model), "as the server says, or as set"),
            "device": theirs,
            "precision": theirs,
            "max_length": theirs,
        }

    def encode(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> list[RemotePair]:
        """Estimate what each pair costs; no text is cut that the server could read."""
        prefix = prefix_of(query, instruction)
        most = self._served.row.characters
        pairs = []
        for document in documents:
            text = document[:most]
            cut = len(text) < len(document)
            own = estimated_tokens(text)
            pairs.append(RemotePair(query, text, prefix, own, cut, instruction))
        return pairs

    def forward(
        self, pairs: Sequence[RemotePair], *, until: Until | None = None
    ) -> list[float | Exception]:
        """Ask for all *pairs*; returns (pairs,) logits, or scores, and errors in their places."""
        return self._runner.run(self._forward(pairs, until))

    def close(self) -> None:
        """Close the connections, and the event loop."""
        try:
            self._runner.run(self._exchange.close())
        finally:
            self._runner.close()

    async def _forward(
        self, pairs: Sequence[RemotePair], until: Until | None
    ) -> list[float | Exception]:
        parts = parts_of(pairs, documents=self._documents, servers=len(self._fleet.servers))
        tasks = [asyncio.create_task(self._answers(part, until)) for part in parts]
        pending = set(tasks)
        while pending:
            left = _left_s(until)
            if left is not None and left <= 0:
                break
            if until is not None:
                left = LOOK_S if left is None else min(left, LOOK_S)
            _, pending = await asyncio.wait(pending, timeout=left)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        answers: list[float | Exception] = [_unanswered(self.name)] * len(pairs)
        for task, part in zip(tasks, parts, strict=True):
            if not task.cancelled():
                for place, answer in zip(part.places, task.result(), strict=True):
                    answers[place] = answer
        return answers

    async def _answers(self, part: Part, until: Until | None) -> list[Answer]:
        """Ask for a part, by halves where one of its documents may be to blame for a failure."""
        try:
            return await self._ask(part, until)
        except Failure as exc:
            failure = exc
        if len(part.pairs) > 1 and failure.rule.parts:
            if failure.kind is Kind.TOO_LARGE:
                # The next ones need not find out.
                self._documents = min(self._documents, max(1, len(part.pairs) // 2))
            if failure.kind is Kind.TOO_LARGE or self._budget.spend():
                first, second = part.halves()
                return [*await self._answers(first, until), *await self._answers(second, until)]
        return [failure.as_error() for _ in part.pairs]

    async def _ask(self, part: Part, until: Until | None) -> list[Answer]:
        """Ask until there is an answer, as often as that makes sense.

        Raises:
            Failure: of the last try.
        """
        self._budget.earn()
        tried: list[Server] = []
        while True:
            server = self._fleet.choose(tried)
            tried.append(server)
            try:
                async with self._room:
                    return await self._ask_one(server, part, until, tried)
            except Failure as exc:
                failure = exc
            if not failure.rule.again or len(tried) == MOST_TRIES:
                raise failure
            wait = self._wait_s(failure, tried)
            left = _left_s(until)
            if wait > LONGEST_RETRY_AFTER_S or (left is not None and wait >= left):
                raise failure
            if not self._budget.spend():
                raise failure
            await asyncio.sleep(wait)

    def _wait_s(self, failure: Failure, tried: Sequence[Server]) -> float:
        """Return how long to wait before the next try: not at all where another can be asked."""
        return 0.0 if self._fleet.others(tried) else wait_s(len(tried), failure.retry_after_s)

    async def _ask_one(
        self, server: Server, part: Part, until: Until | None, tried: Sequence[Server]
    ) -> list[Answer]:
        """Ask one server once, and remember how that went."""
        seconds = REQUEST_TIMEOUT_S
        # The deadline itself may move while this goes on; `_forward` looks after it.
        if self._fleet.others(tried) and (left := _left_s(until)) is not None:
            # Half of what is left is for another one, if this one says nothing.
            seconds = min(seconds, max(0.0, left / 2))
        began = self._fleet.clock()
        server.outstanding += 1
        try:
            served = await self._served_by(server)
            body = await self._exchange.post(
                server.address,
                served.path,
                served.row.write(_question(served, part)),
                seconds=seconds,
                texts=[part.pairs[0].query, *(pair.document for pair in part.pairs)],
            )
            answers = read_answer(body, served.row, len(part.pairs), server.address)
        except Failure as failure:
            server.failed(failure.rule.strikes, self._fleet.clock(), str(failure))
            if failure.kind is Kind.CUT:
                # It may be another process by now, with another model.
                server.served = None
            raise
        except asyncio.CancelledError:
            if (now := self._fleet.clock()) - began >= PATIENT_S:
                server.failed(Kind.LATE.rule.strikes, now, "no answer in time")
            raise
        finally:
            server.outstanding -= 1
        server.answered()
        return answers

    async def _served_by(self, server: Server) -> Served:
        """Return what a server serves; it is asked again from time to time.

        Raises:
            Failure: another model than before, or it was away and cannot say.
        """
        served = server.served
        if served is None or server.doubted(self._fleet.clock()):
            try:
                served = await self._introduced(server)
            except Failure as failure:
                # One that answers, but does not say what, is believed as before.
                if served is None or failure.kind is Kind.CHANGED:
                    raise
        return served

    async def _introduced(self, server: Server) -> Served:
        """Let a server say what it serves: it must be what it was.

        Raises:
            Failure: it is not, or cannot be asked.
        """
        served = await self._identify(server)
        if served.identity != self.identity:
            raise Failure(
                Kind.CHANGED,
                f"{server.address} serves {served.identity} now, and the other logits are of "
                f"{self.identity}; open a new reranker",
            )
        server.introduced(served, self._fleet.clock())
        return served


def _question(served: Served, part: Part) -> Question:
    first = part.pairs[0]
    documents = [pair.document for pair in part.pairs]
    return Question(served.model, first.query, documents, first.instruction)


def _left_s(until: Until | None) -> float | None:
    """Return for how many seconds somebody waits yet; None for ever."""
    deadline = None if until is None else until()
    return None if deadline is None else deadline - time.monotonic()


def _unanswered(name: str) -> RerankTimeoutError:
    return RerankTimeoutError(f"{name} gave no answer before the deadline")
