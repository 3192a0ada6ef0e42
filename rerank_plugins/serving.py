"""The life of a call: clean → route → engine → wait → finish, whatever becomes of it."""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from rerank_plugins.candidates import ALL
from rerank_plugins.engine import deadline_after
from rerank_plugins.errors import ClosedError, RerankTimeoutError
from rerank_plugins.options import Activation
from rerank_plugins.requests import check_timeout
from rerank_plugins.routing import Router
from rerank_plugins.screening import chosen_texts, cleaned_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future

    from rerank_plugins.cleaning import Cleaner
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.engine import Engine
    from rerank_plugins.protocols import AnyScorer
    from rerank_plugins.registry import Leases
    from rerank_plugins.requests import Call, Group

T = TypeVar("T")

_FINISH_ON_LOOP = 4096
"""Documents whose ranking is put together on the event loop: some milliseconds' work."""


class Serving:
    """Serves the calls of one reranker, those of threads and those of event loops alike."""

    def __init__(self, config: RerankConfig, cleaner: Cleaner, leases: Leases) -> None:
        self._config = config
        self._cleaner = cleaner
        self._leases = leases
        self._router = Router(config, leases)

    def answer(self, call: Call, timeout_s: float | None, finish: Callable[[Call], T]) -> T:
        """Serve *call* and return what *finish* makes of it once it is answered."""
        with self._seen(call):
            timeout_s = self._timeout(timeout_s)
            deadline = deadline_after(timeout_s)
            with _attempt(call, timeout_s):
                call.job.deadline = deadline
                for room in self._submit(call, deadline):
                    room.result(call.job.seconds_left)
                call.job.future.result(call.job.seconds_left)
            return finish(call)

    async def await_answer(
        self, call: Call, timeout_s: float | None, finish: Callable[[Call], T]
    ) -> T:
        """Do what `answer` does; on the event loop itself happens only what is short."""
        with self._seen(call):
            self._leases.check_open()
            timeout_s = self._timeout(timeout_s)
            deadline = deadline_after(timeout_s)
            steps = self._submit(call, deadline)
            # Step by step: who waits for room in the queue must not hold a thread meanwhile.
            step = partial(contextvars.copy_context().run, next, steps, None)
            with _attempt(call, timeout_s):
                call.job.deadline = deadline
                async with asyncio.timeout(timeout_s):
                    threads = self._leases.primary.threads(may_block=self._cleaner.may_block)
                    while (room := await _run_in(threads, step)) is not None:
                        await asyncio.wrap_future(room)
                    await asyncio.wrap_future(call.job.future)
                    return await self._finished(call, finish)

    def warm_up(self) -> None:
        """Open the model, and score one pair with each replica."""
        self._leases.primary.warm_up(self._router.instruction(None))

    @contextmanager
    def _seen(self, call: Call) -> Iterator[None]:  # noqa: ARG002  who watches will want it
        """Every call begins and ends in here, with an answer or with what it raises."""
        yield

    def _submit(self, call: Call, deadline: float | None) -> Iterator[Future[None]]:
        """Clean and route each query with its documents, and hand them to the engine.

        Gives futures to wait for before it goes on, as `Engine.submitting` does.
        """
        call.prepare()
        instruction = self._router.instruction(call.instruction)
        for group in call.groups:
            query, scored_language = self._cleaner.query(group.query, group.where)
            engine = self._router.engine(scored_language)
            group.language = query.language
            yield from self._submit_group(call, group, query.text, engine, instruction, deadline)
            if not call.job.waiting:
                return

    def _submit_group(
        self,
        call: Call,
        group: Group,
        query: str,
        engine: Engine,
        instruction: str | None,
        deadline: float | None,
    ) -> Iterator[Future[None]]:
        """Hand the documents of *group* to *engine*; *query* is the cleaned one."""
        scorer = engine.scorer()
        group.scorer, group.activation = scorer.name, self._activation(scorer)
        texts = cleaned_texts(self._cleaner, group, call.job, deadline)
        if call.choice != ALL:
            texts = chosen_texts(call, query, texts, deadline)
        return engine.submitting(
            call.job,
            query,
            texts,
            salt=self._cleaner.identity,
            instruction=instruction,
            when_full=self._config.when_full,
        )

    def _activation(self, scorer: AnyScorer) -> str:
        chosen = self._config.activation
        return scorer.activation if chosen is Activation.AUTO else chosen.value

    async def _finished(self, call: Call, finish: Callable[[Call], T]) -> T:
        if len(call.job.pairs) <= _FINISH_ON_LOOP:
            return finish(call)
        try:
            return await _run_in(self._leases.primary.threads(), partial(finish, call))
        except ClosedError:
            # Closed since; the answer is complete all the same.
            return finish(call)

    def _timeout(self, timeout_s: float | None) -> float | None:
        return self._config.timeout_s if timeout_s is None else check_timeout(timeout_s)


def _run_in(threads: Executor, function: Callable[[], T]) -> asyncio.Future[T]:
    """Run *function* in one of *threads*, which may have been closed just now."""
    try:
        return asyncio.get_running_loop().run_in_executor(threads, function)
    except RuntimeError as exc:
        raise ClosedError("the reranker was closed during the call") from exc


@contextmanager
def _attempt(call: Call, timeout_s: float | None) -> Iterator[None]:
    """One try of a call on one engine: afterwards nothing waits for it any more."""
    try:
        yield
    except TimeoutError:
        raise RerankTimeoutError(f"no answer within timeout_s={timeout_s}") from None
    finally:
        call.job.cancel()
